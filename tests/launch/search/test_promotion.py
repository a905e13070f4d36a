"""Rungs, and which trial is promoted."""

from __future__ import annotations

import pytest

from launch.search.promotion import last_promotion, next_promotion, rungs_of
from launch.search.trial import Trial
from sft_dist.recipe.arithmetic import Steps
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import AshaPruning

RUNGS = (1, 3, 9)


def trial(number: int, *scores: float, rung: int = 0, state: str = "running") -> Trial:
    return Trial(number, state, {}, "r", rungs=RUNGS, rung=rung, scores=dict(zip(RUNGS, scores, strict=False)))


def test_rungs_lie_at_validations_and_end_with_all_steps() -> None:
    steps = Steps(10, 100, 0, tuple(range(5, 101, 5)), tuple(range(5, 101, 5)))
    assert rungs_of(steps, AshaPruning(name="asha")) == (15, 35, 100)
    assert rungs_of(steps, AshaPruning(name="asha", eta=2, first="10%")) == (10, 20, 40, 80, 100)
    assert rungs_of(steps, AshaPruning(name="asha", first="1 epoch")) == (10, 30, 90, 100)
    assert rungs_of(steps, AshaPruning(name="asha", eta=10, first="1 steps")) == (5, 10, 100)


def test_a_run_without_early_validations_cannot_pause() -> None:
    with pytest.raises(UserError, match=r"no validation comes before the last step.*\n.*set train.eval_every"):
        rungs_of(Steps(10, 10, 0, (10,), (10,)), AshaPruning(name="asha"))


def test_the_best_third_of_a_rung_is_promoted_as_soon_as_it_is_known() -> None:
    trials = [trial(0, 0.1), trial(1, 0.9)]
    assert next_promotion(trials, 3, True) is None
    trials.append(trial(2, 0.5))
    assert next_promotion(trials, 3, True) == trials[1]
    assert next_promotion(trials, 3, False) == trials[0]


def test_trials_on_their_way_block_nothing_and_are_not_promoted_twice() -> None:
    trials = [trial(0, 0.1), trial(1, 0.9, rung=1), trial(2, 0.5), trial(3)]
    assert next_promotion(trials, 3, True) is None, "one in three has been promoted"
    trials += [trial(4, 0.6), trial(5, 0.2), trial(6, 0.3)]
    assert next_promotion(trials, 3, True) == trials[4]


def test_higher_rungs_come_first() -> None:
    trials = [trial(number, 0.5 + number / 100, 0.5 + number / 100, rung=1) for number in range(3)]
    trials += [trial(number, 0.1) for number in range(3, 9)]
    trials.append(trial(9, 0.99))
    assert next_promotion(trials, 3, True) == trials[2]


def test_pruned_trials_count_in_their_rung_and_are_not_promoted() -> None:
    trials = [trial(0, 0.9, state="pruned"), trial(1, 0.5), trial(2, 0.4)]
    assert next_promotion(trials, 3, True) is None
    assert next_promotion([*trials, trial(3, 0.3), trial(4, 0.2), trial(5, 0.1)], 3, True) == trials[1]


def test_at_the_end_the_best_of_the_highest_rung_is_trained_in_full() -> None:
    trials = [trial(0, 0.9), trial(1, 0.5, 0.6, rung=1)]
    assert last_promotion(trials, True) == trials[1]
    assert last_promotion([*trials, trial(2, state="finished")], True) is None
    assert last_promotion([trial(0)], True) is None
