"""Which validated step is the best so far."""

from __future__ import annotations

import pytest

from sft_dist.training.state import Progress
from sft_dist.training.validation import _is_best


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({"accuracy": 0.5, "loss": 0.6}, True),  # a tie is broken by the loss, as on the leaderboard
        ({"accuracy": 0.5, "loss": 0.8}, False),
        ({"accuracy": 0.5, "loss": 0.7}, False),  # the earlier step stays
        ({"accuracy": 0.6, "loss": 9.0}, True),
        ({"accuracy": 0.4, "loss": 0.1}, False),
    ],
)
def test_ties_are_broken_by_the_loss_and_then_by_the_earlier_step(scores, best):
    progress = Progress(step=8, best_step=4, best_score=0.5, validated={4: {"accuracy": 0.5, "loss": 0.7}})
    assert _is_best(scores, progress, "accuracy", "max") is best


def test_the_first_defined_score_is_the_best():
    assert _is_best({"accuracy": 0.0, "loss": 1.0}, Progress(step=4), "accuracy", "max")
