"""Rows from a recipe: cleaned, every dropped one counted, and divided so that nothing trained on is tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from sft_dist.recipe.errors import UserError
from tests.sft_dist.data.row_files import (
    ROWS,
    all_texts,
    ids_of,
    mistake,
    prepared,
    prepared_for,
    write_csv,
    write_jsonl,
)


# ── cleaning ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_empty_cells_are_missing(tmp_path):
    rows = [*ROWS, {"text": "", "label": "pos"}, {"text": "  ", "label": "pos"}, {"text": "no label", "label": ""}]
    found = prepared(write_csv(tmp_path / "rows.csv", [{"lang": "", **row} for row in rows]))
    assert all_texts(found) == sorted(row["text"] for row in ROWS)
    assert found.dropped["empty text"] == 2
    assert found.dropped["no label"] == 1


def test_numbers_as_labels_stay_whole_beside_an_empty_cell(tmp_path):
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(20)] + [{"text": "unlabelled", "label": ""}]
    found = prepared(write_csv(tmp_path / "rows.csv", rows))
    assert set(found.splits["train"].column("label")) == {"0", "1"}
    assert found.dropped["no label"] == 1


def test_every_dropped_row_is_counted_by_its_reason(tmp_path):
    rows = [
        *ROWS,
        {"text": "text 1", "label": "pos", "lang": "en"},  # seen before
        {"text": " text 2 ", "label": "neg", "lang": "en"},  # seen before once stripped
        {"text": "", "label": "neg", "lang": "en"},
        {"text": "unlabelled", "label": None, "lang": "en"},
        {"text": "x" * 50, "label": "neg", "lang": "en"},
        {"text": "elsewhere", "label": "neg", "lang": "xx"},
    ]
    found = prepared(
        write_jsonl(tmp_path / "rows.jsonl", rows),
        where={"lang": ["en", "de", "fr"]},
        limit=20,
        clean={"max_chars": 40},
    )
    assert found.dropped == {
        "where": 1, "duplicate": 2, "empty text": 1, "no label": 1, "too long": 1, "limit": 10,
    }  # fmt: skip
    assert sum(map(len, found.splits.values())) + sum(found.dropped.values()) == len(rows)


@pytest.mark.parametrize("task", ["text-classification", "translation", "token-classification", "instruction-tuning"])
def test_of_rows_nearly_alike_the_first_stays(task, tmp_path):
    long = "the committee met in the old town hall on Tuesday and talked about the bridge until midnight"
    texts = [
        long,
        f"{long}!",
        "nobody came to the second meeting, so the bridge stays closed",
        long.replace("old", "new"),
    ]
    made: dict[str, Callable[[str], dict[str, Any]]] = {
        "text-classification": lambda text: {"text": text, "label": str(len(text))},
        "translation": lambda text: {"source": text, "target": "-"},
        "token-classification": lambda text: {"tokens": text.split(), "tags": ["B-x", *"O" * text.count(" ")]},
        # A system message that is longer than all the rest makes no two rows alike.
        "instruction-tuning": lambda text: {
            "system": " ".join(map(str, range(500))),
            "prompt": "?",
            "completion": text,
        },
    }
    found = prepared_for(task, list(map(made[task], texts)), tmp_path / "rows.jsonl", near_duplicates=0.8)
    assert found.splits["train"].ids.tolist() == [0, 2]
    assert found.dropped["near duplicate"] == 2


def test_pictures_are_not_nearly_alike(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"image": str(tmp_path / "a.png"), "label": "x"}]
    with pytest.raises(UserError, match="works on texts, and this task has none"):
        prepared_for("image-classification", rows, tmp_path / "rows.jsonl", near_duplicates=0.8)


def test_cleaning_can_be_switched_off(tmp_path):
    rows = [{"text": " same ", "label": n % 2} for n in range(20)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = prepared(file, clean={"strip": False, "drop_duplicates": False})
    assert all_texts(found) == [" same "] * 20


def test_unicode_forms_make_equal_texts_equal(tmp_path):
    rows = [
        {"text": text, "label": "cf"[n // 2]} for n, text in enumerate(["caf\u00e9", "cafe\u0301", "\ufb01lm", "film"])
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    nothing_held_out = {"validation": 0.0, "test": 0.0}
    assert len(prepared(file, split=nothing_held_out).splits["train"]) == 4
    assert len(prepared(file, split=nothing_held_out, clean={"unicode": "NFC"}).splits["train"]) == 3
    assert len(prepared(file, split=nothing_held_out, clean={"unicode": "NFKC"}).splits["train"]) == 2


def test_of_equal_inputs_only_those_with_equal_targets_are_duplicates(tmp_path):
    pairs = [("hello", "hallo"), ("hello", "guten Tag"), ("hello ", "hallo"), ("bye", "hallo")]
    found = prepared_for("translation", [{"source": a, "target": b} for a, b in pairs], tmp_path / "pairs.jsonl")
    assert found.splits["train"].ids.tolist() == [0, 1, 3]
    assert found.dropped["duplicate"] == 1
    rows = [{"text": "same", "label": label} for label in ("a", "b", "a")]
    found = prepared_for("text-classification", rows, tmp_path / "rows.jsonl")
    assert found.splits["train"].ids.tolist() == [0, 1]


@pytest.mark.parametrize("stratify", [True, False])
def test_rows_with_the_same_input_are_never_divided(tmp_path, stratify):
    rows = [{"text": f"text {n % 60}", "label": ["neg", "pos", "neither"][n // 60]} for n in range(180)]
    found = prepared(write_jsonl(tmp_path / "rows.jsonl", rows), split={"stratify": stratify})
    texts = {split: set(some.column("text")) for split, some in found.splits.items()}
    assert sum(map(len, texts.values())) == 60
    assert {split: len(some) for split, some in found.splits.items()} == {"train": 144, "test": 18, "validation": 18}


def test_pairs_are_duplicates_only_when_both_texts_are(tmp_path):
    rows = [{"text": "same", "text_pair": f"p{n % 15}", "label": n % 15 % 2} for n in range(20)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = prepared(file, columns={"text_pair": "text_pair"}, split={"stratify": False})
    assert sum(map(len, found.splits.values())) == 15
    assert found.dropped["duplicate"] == 5


# ── splits ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def skewed(tmp_path):
    """300 rows, one in ten of class `rare`."""
    rows = [{"text": f"text {n}", "label": "rare" if n % 10 == 0 else "usual"} for n in range(300)]
    return write_csv(tmp_path / "skewed.csv", rows)


def test_only_the_missing_split_is_held_out(tmp_path):
    saved = DatasetDict({"train": Dataset.from_list(ROWS[:20]), "test": Dataset.from_list(ROWS[20:])})
    saved.save_to_disk(str(tmp_path / "saved"))
    found = prepared(tmp_path / "saved", split={"validation": 0.2})
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 16, "validation": 4, "test": 10}
    assert found.splits["test"].column("text") == [row["text"] for row in ROWS[20:]]


def test_the_division_depends_on_the_split_seed_alone(skewed):
    first = ids_of(prepared(skewed))
    assert ids_of(prepared(skewed)) == first
    assert ids_of(prepared(skewed, seed=7)) == first
    other = ids_of(prepared(skewed, split={"seed": 1}))
    assert other["test"] != first["test"]


def test_the_splits_share_no_row_and_lose_none(skewed):
    parts = ids_of(prepared(skewed, split={"validation": 0.2, "test": 0.1}))
    assert {split: len(ids) for split, ids in parts.items()} == {"train": 210, "validation": 60, "test": 30}
    assert sorted(sum(parts.values(), [])) == list(range(300))


@pytest.mark.slow
def test_class_shares_are_kept_in_every_part(skewed):
    found = prepared(skewed, split={"validation": 0.2, "test": 0.1})
    for split, rare in {"train": 21, "validation": 6, "test": 3}.items():
        assert Counter(found.splits[split].column("label"))["rare"] == rare
    free = [
        prepared(skewed, split={"seed": seed, "stratify": False}).splits["test"].column("label") for seed in range(5)
    ]
    assert {Counter(targets)["rare"] for targets in free} != {3}


def test_a_share_of_zero_makes_no_split(skewed):
    assert set(prepared(skewed, split={"validation": 0.1, "test": 0.0}).splits) == {"train", "validation"}


def test_a_limit_draws_the_same_rows_again(skewed):
    first, second = (prepared(skewed, limit=100) for _ in range(2))
    assert ids_of(first) == ids_of(second)
    assert sum(map(len, first.splits.values())) == 100
    assert first.dropped["limit"] == 200


def test_groups_that_given_splits_share_are_named(tmp_path):
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "speaker": f"s{n % 4}"} for n in range(24)]
    train = write_jsonl(tmp_path / "train.jsonl", rows[:20])
    split = {"group": "speaker", "test": 0.0}
    other = [{**row, "speaker": "s9"} for row in rows[20:]]
    apart = write_jsonl(tmp_path / "apart.jsonl", other)
    given = write_jsonl(tmp_path / "validation.jsonl", [*other, *({**row, "text": "more"} for row in rows[21:23])])
    assert len(prepared({"train": str(train), "validation": str(apart)}, split=split).splits["validation"]) == 4
    said = mistake({"train": str(train), "validation": str(given)}, split=split)
    assert "data.split.group: groups in both train and validation: s1, s2" in said
    assert "move each group into one of the splits" in said


def test_rows_that_are_all_dropped_are_a_mistake(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "", "label": "a"}, {"text": " ", "label": "b"}])
    said = mistake(file)
    assert "no row of train is left after cleaning" in said
    assert "'empty text': 2" in said


def test_a_class_too_rare_to_be_divided_is_named(tmp_path):
    file = write_csv(tmp_path / "rows.csv", [*ROWS, {"text": "odd", "label": "once", "lang": "en"}])
    said = mistake(file)
    assert "equal shares: 'once' (1)" in said
    assert "data.split.stratify=false" in said


def test_too_few_rows_for_a_split_are_a_mistake(tmp_path):
    file = write_csv(tmp_path / "rows.csv", ROWS[:4])
    assert "data.split.test: 0.1 of 4 rows leaves a split empty" in mistake(file)
