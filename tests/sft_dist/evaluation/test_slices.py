"""Scores of slices are those of their examples alone, and one is only called worse than the rest where that is no chance."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from sft_dist.data.rows import ROW, Examples, Rows
from sft_dist.evaluation.comparison import Answers
from sft_dist.evaluation.example_scores import example_scores
from sft_dist.evaluation.leaderboard import render
from sft_dist.evaluation.predictions import SplitPredictions
from sft_dist.evaluation.slices import (
    MIN_UNITS,
    Division,
    divisions,
    length_edges,
    length_names,
    restricted,
    slice_scores,
)
from sft_dist.evaluation.statistics import interval, wilson
from sft_dist.recipe.errors import UserError
from sft_dist.tasks import task_of
from tests.sft_dist.evaluation.task_predictions import CASES, classification
from tests.tiny_text import recipe_of

NUM = 240
LANGUAGES = Division("language", ["de", "en", "fr"], np.repeat([0, 1, 2], [60, 160, 20]))
TASK = task_of(recipe_of({"type": "text-classification"}, labels=["neg", "pos"]))


def answers_of(num_wrong, groups=None):
    """So many wrong answers in each language."""
    first = np.concatenate([[0], np.cumsum(np.bincount(LANGUAGES.codes))[:-1]])
    predicted = np.zeros(NUM, dtype=int)
    for start, number in zip(first, num_wrong, strict=True):
        predicted[start : start + number] = 1
    examples = Examples(Dataset.from_dict({"label": [0] * NUM, ROW: list(range(NUM))}), "test")
    content = SplitPredictions(list(np.eye(2, dtype=np.float32)[predicted] * 3), np.arange(NUM), groups, "rows")
    return Answers(content, TASK, TASK.build_loss(examples), examples, Rows(examples.table))


def test_each_slice_has_its_score_and_only_the_worse_is_marked():
    german, english, french = slice_scores(answers_of([24, 16, 10]), [LANGUAGES], "accuracy", "max")
    assert german == {"by": "language", "slice": "de", "examples": 60, "score": 0.6, "interval": [*wilson(36, 60)], "p_value": german["p_value"], "worse": True}  # fmt: skip
    assert (english["score"], english["worse"]) == (0.9, False)
    assert english["p_value"] > 0.99
    assert french["examples"] < MIN_UNITS
    assert french["score"] == 0.5
    assert french["interval"] == [*wilson(10, 20)]
    assert (french["p_value"], french["worse"]) == (None, False), "too few examples for a claim"


def test_p_values_are_corrected_over_all_slices():
    one = slice_scores(answers_of([14, 16, 2]), [LANGUAGES], "accuracy", "max")[0]["p_value"]
    halves = Division("half", ["even", "odd"], np.arange(NUM) % 2)
    several = slice_scores(answers_of([14, 16, 2]), [LANGUAGES, halves], "accuracy", "max")[0]["p_value"]
    assert several == pytest.approx(2 * one)  # of two tested slices, and of four


def test_lower_is_worse_or_better_by_direction():
    entries = slice_scores(answers_of([24, 16, 2]), [LANGUAGES], "loss", "min")
    assert [entry["worse"] for entry in entries] == [True, False, False]


def test_groups_are_the_units_of_slices():
    """Of 12 groups of 5 examples nothing can be claimed, and their interval is wider."""
    groups = np.arange(NUM) // 5
    alone, grouped = (slice_scores(answers_of([30, 16, 2], g), [LANGUAGES], "accuracy", "max") for g in (None, groups))
    assert alone[0]["worse"]
    assert grouped[0]["p_value"] is None
    assert grouped[0]["score"] == alone[0]["score"]
    assert np.ptp(grouped[0]["interval"]) > 1.3 * np.ptp(alone[0]["interval"])


@pytest.mark.parametrize("groups", [None, np.arange(NUM) // 5])
def test_a_slice_that_is_the_whole_split_has_no_rest(groups):
    division = Division("language", ["en"], np.zeros(NUM, dtype=int))
    (entry,) = slice_scores(answers_of([24, 16, 10], groups), [division], "accuracy", "max")
    assert (entry["examples"], entry["p_value"]) == (NUM, None)
    assert entry["score"] == pytest.approx(190 / 240)


@pytest.mark.parametrize("name", CASES)
def test_the_score_of_a_slice_is_the_task_s_score_of_its_examples(name):
    task, predictions, examples = CASES[name]()
    members = np.arange(len(examples)) % 3 > 0
    chosen = np.flatnonzero(members)
    part = Examples(examples.table.select(chosen), examples.split)
    expected = task.score([predictions[i] for i in chosen], part, None)
    for metric, scores in example_scores(task, None, predictions, examples).items():
        if metric not in expected:
            continue
        assert restricted(scores, members, None).value == pytest.approx(expected[metric], nan_ok=True), metric
        groups = np.arange(len(examples)) // 2
        grouped = restricted(scores, members, groups)
        assert grouped.num_units == len(set(groups[members]))
        assert grouped.value == pytest.approx(expected[metric], nan_ok=True), metric


def test_what_is_computed_again_is_resampled_less_often_in_many_slices():
    task, predictions, examples = classification("multi-label", 60)
    scores = replace(example_scores(task, None, predictions, examples)["roc_auc"], max_scored=60 * 2000)
    members = np.arange(60) < 40
    assert interval(restricted(scores, members, None, 4))
    assert interval(restricted(scores, members, None, 40)) is None


# ── by length ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_quartiles_of_lengths():
    edges = length_edges(np.arange(1, 101))
    assert edges.tolist() == [25, 50, 75]
    assert length_names(edges) == ["up to 25", "over 25 to 50", "over 50 to 75", "over 75"]
    assert length_names(length_edges(np.array([7] * 9 + [1200]))) == ["up to 7", "over 7"]
    assert length_names(length_edges(np.array([0.123456, 2.0, 10.51]))) == ["up to 0.123", "over 0.123 to 2", "over 2 to 10.5", "over 10.5"]  # fmt: skip


def data_of(lengths_by_split, task=TASK, **columns):
    examples = {
        split: Examples(Dataset.from_dict({"length": lengths, ROW: list(range(len(lengths)))}), split)
        for split, lengths in lengths_by_split.items()
    }
    rows = {
        split: Rows(Dataset.from_dict({ROW: list(range(len(entry))), **columns})) for split, entry in examples.items()
    }
    return SimpleNamespace(task=task, examples=examples, splits=rows)


def test_both_splits_are_divided_at_the_quartiles_of_validation():
    data = data_of({"validation": [*range(1, 9)], "test": [1, 2, 9, 9]})
    (validation,), (test,) = (divisions(data, TASK.recipe, split) for split in ("validation", "test"))
    assert validation.by == test.by == "length (tokens)"
    assert validation.names == test.names == ["up to 2", "over 2 to 4", "over 4 to 6", "over 6"]
    assert test.codes.tolist() == [0, 0, 3, 3]


def test_sounds_are_divided_by_seconds_and_equal_lengths_not_at_all():
    speech = task_of(recipe_of("speech-recognition"))
    (division,) = divisions(data_of({"test": [1, 1]}, speech, seconds=[1.0, 9.0]), speech.recipe, "test")
    assert (division.by, division.codes.tolist()) == ("length (seconds)", [0, 1])
    assert divisions(data_of({"test": [5, 5, 5]}), TASK.recipe, "test") == []
    images = task_of(recipe_of("object-detection"))
    assert divisions(data_of({"test": [1, 2]}, images), images.recipe, "test") == []


# ── what the leaderboard says ───────────────────────────────────────────────────────────────────────────────────────
def page_of(slices):
    winner = {"run": "r", "step": 2, "checkpoint": "/c", "validation": {"examples": 4, "f1": 0.7}, "test": {"f1": 0.7}}
    board = {
        "metric": "f1", "direction": "max", "winner": {**winner, "slices": {"test": slices}}, "rows": [winner],
        "differences": {}, "labels": [], "damaged": [], "export": None,
    }  # fmt: skip
    return render(board)


def test_the_page_names_the_worst_slices():
    slices = slice_scores(answers_of([24, 16, 10]), [LANGUAGES], "accuracy", "max")
    low, high = wilson(36, 60)
    assert (
        f"1 of 3 slices of test is worse than the rest: language de: 0.600 [{low:.3f}, {high:.3f}] (n = 60, p = "
        in page_of(slices)
    )
    assert "fr" not in page_of(slices)
    slices = slice_scores(answers_of([6, 16, 2]), [LANGUAGES], "accuracy", "max")
    assert (
        "None of 3 slices of test is worse than the rest beyond chance; the nearest to it: language de: 0.900"
        in page_of(slices)
    )
    many = [{**slices[0], "slice": str(n), "p_value": n / 1000, "worse": True} for n in range(5)]
    assert "5 of 5 slices of test are worse than the rest: language 0: " in page_of(many)
    assert "; and 2 more." in page_of(many)
    assert "slices" not in page_of([{**entry, "p_value": None} for entry in slices])


def test_data_that_is_gone_leaves_the_scores_as_they_are(caplog):
    from sft_dist.evaluation.leaderboard import Scored
    from sft_dist.evaluation.slices import with_slices

    class Gone:
        def read(self, *arguments):
            raise UserError("the data is gone")

    board = {"winner": {"validation": {}, "test": {}}, "metric": "f1"}
    assert with_slices(board, Scored(None, 1, "", {}), TASK.recipe, Gone())["winner"]["slices"] == {}
    assert "no scores of slices: the data is gone" in caplog.text
