"""The order of checkpoints, and what the leaderboard says of those without scores."""

from __future__ import annotations

import math

import pytest

from sft_dist.evaluation.leaderboard import Scored, no_better_than_guessing, no_better_than_untrained, rank_key, render


def ranked(direction, *scores):
    found = [Scored(None, step, "", one) for step, one in enumerate(scores, 1)]
    return [one.step for one in sorted(found, key=lambda one: rank_key(one, "f1", direction))]


@pytest.mark.parametrize("direction", ["max", "min"])
def test_a_checkpoint_without_scores_ranks_last(direction):
    undefined = {"f1": None, "loss": None}
    old = {"f1": math.nan, "loss": math.nan}  # as an older version recorded it
    best, other = {"f1": 0.5, "loss": 2.0}, {"f1": 0.5, "loss": math.nan}
    assert ranked(direction, undefined, other, old, best) == [4, 2, 1, 3]
    assert ranked(direction, best, old, other, undefined) == [1, 3, 2, 4]


def test_the_leaderboard_says_why_there_are_no_scores():
    def row(step, scores):
        return {"run": "r", "step": step, "validation": {"examples": 4, **scores}}

    rows = [
        row(2, {"loss": 0.5, "f1": 0.7}),
        row(1, {"loss": None, "f1": None, "undefined": {"why": "3 of 4 predictions are no numbers"}}),
    ]
    winner = {**rows[0], "checkpoint": "/c"}
    board = {
        "metric": "f1", "direction": "max", "winner": winner, "rows": rows, "differences": {}, "labels": [], "damaged": [],
        "export": None,
    }  # fmt: skip
    text = render(board)
    assert "- r step 1: 3 of 4 predictions are no numbers" in text
    assert "Without scores" not in render({**board, "rows": rows[:1]})
    assert "is undefined for every checkpoint" not in text


def test_a_metric_that_no_checkpoint_has_is_named_and_the_lower_loss_decides():
    assert ranked("max", {"f1": None, "loss": 0.5}, {"f1": None, "loss": 0.2}) == [2, 1]
    winner = {"run": "r", "step": 2, "validation": {"examples": 4, "loss": 0.2, "mcc": None}, "checkpoint": "/c"}
    board = {
        "metric": "mcc", "direction": "max", "winner": winner, "rows": [winner], "differences": {}, "labels": [],
        "damaged": [], "export": None,
    }  # fmt: skip
    assert "mcc is undefined for every checkpoint, so the lower loss decides" in render(board)


@pytest.mark.parametrize(
    ("scores", "note"),
    [
        ({"accuracy": 0.6, "confusion_matrix": [[0, 4], [0, 6]]}, "always answering `pos` scores 0.6000"),
        ({"accuracy": 0.5, "confusion_matrix": [[3, 1], [4, 2]]}, "always answering `pos` scores 0.6000"),
        ({"accuracy": 0.7, "confusion_matrix": [[2, 2], [1, 5]]}, ""),
        ({"r2": -0.1}, "always answering the mean"),
        ({"r2": 0.1}, ""),
        ({"r2": None, "loss": 1.0}, ""),
        ({"accuracy": 0.1, "confusion_matrix": [[[3, 1], [4, 2]]]}, ""),  # multi-label
    ],
)
def test_a_winner_that_is_no_better_than_a_constant_answer_is_said_so(scores, note):
    text = no_better_than_guessing(scores, ["neg", "pos"])
    assert note in text
    assert bool(note) == bool(text)
    row = {"run": "r", "step": 1, "validation": {"examples": 10, **scores}, "checkpoint": "/c"}
    board = {
        "metric": "loss", "direction": "min", "winner": row, "rows": [row], "labels": [], "damaged": [], "export": None,
        "differences": {"r": {"train.lr": 1e-4, "train.seed": 2}}, "no_better_than_guessing": note,
    }  # fmt: skip
    text = render(board)
    assert (f"Note: {note}." in text) == bool(note)
    assert "Winner: run r (lr=1e-4 seed=2), step 1" in text


@pytest.mark.parametrize(
    ("score", "start", "direction", "note"),
    [
        (0.5, 0.5, "max", "f1 is 0.5000: before training it is 0.5000"),
        (0.6, 0.5, "max", ""),
        (0.6, 0.5, "min", "f1 is 0.6000: before training it is 0.5000"),
        (0.5, None, "max", ""),
        (None, 0.5, "max", ""),  # `undefined_everywhere` says so
    ],
)
def test_a_winner_that_is_no_better_than_the_untrained_model_is_said_so(score, start, direction, note):
    assert no_better_than_untrained({"f1": score}, {"f1": start}, "f1", direction) == note


def test_the_untrained_model_has_a_row_without_a_rank():
    row = {"run": "r", "step": 1, "validation": {"examples": 4, "f1": 0.7}, "checkpoint": "/c"}
    board = {
        "metric": "f1", "direction": "max", "winner": row, "rows": [row], "differences": {}, "labels": [], "damaged": [],
        "export": None, "untrained": {"examples": 4, "f1": 0.25}, "no_better_than_untrained": "no better",
    }  # fmt: skip
    text = render(board)
    assert "|     | untrained | 0    | 0.2500 |" in text
    assert "Note: no better." in text
