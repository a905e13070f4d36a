"""A search that is killed anywhere ends as if it had not been: no trial repeated, none lost, the same best."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from launch.search import controller
from launch.search.controller import worse_than_median
from launch.search.definition import Definition
from launch.search.trial import Trial, better_first
from sft_dist.recipe.errors import UserError
from tests.launch.conftest import Workplace
from tests.launch.search.conftest import FormulaRuns, Kill, Killed, StepwiseRuns, define, search, trials_of

SPACE = "search: {space: {train.lr: {log: [1.0e-5, 1.0e-1]}}, sampler: random, budget: {trials: 3}"
ASHA = f"{SPACE}, pruning: {{name: asha, eta: 2, first: 4 steps}}}}\n"


def killed_anywhere(definition: Definition, at: int) -> tuple[list[str], int]:
    """Kills at the n-th point, continues, and returns the runs that were started, and the points passed."""
    kill = Kill(at)
    runs = FormulaRuns(kill)
    with kill.in_journal():
        try:
            search(definition, runs)
        except Killed:
            kill.at = -1
            search(definition, runs)
    return runs.started, kill.passed


@pytest.mark.slow
def test_a_search_that_is_killed_at_any_write_ends_with_the_same_table(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # processes are killed here, not machines
    definition = define(workplace, ASHA)
    started, num_points = killed_anywhere(definition, -1)
    expected = trials_of(definition)
    assert Counter(trial.state for trial in expected)["finished"] == 1
    assert len({trial.run for trial in expected}) == 3
    for at in range(num_points):
        killed = moved(definition, workplace.path / f"killed-{at}")
        again, _ = killed_anywhere(killed, at)
        assert trials_of(killed) == expected, f"killed at point {at}"
        assert again == started, f"killed at point {at}"


def moved(definition: Definition, root: Path) -> Definition:
    """The same search elsewhere."""
    runs = root / definition.runs.name
    folder = runs / definition.folder.relative_to(definition.runs)
    folder.mkdir(parents=True)
    return replace(definition, runs=runs, folder=folder)


def test_a_larger_budget_continues_the_same_study(workplace: Workplace) -> None:
    small = define(workplace, SPACE + "}\n")
    assert search(small) == 0
    large = define(workplace, SPACE + "}\n", "search.budget.trials=5")
    assert large.folder == small.folder
    runs = FormulaRuns()
    assert search(large, runs) == 0
    assert len(runs.started) == 2
    assert len(trials_of(large)) == 5


def test_points_that_the_planner_refuses_are_pruned_and_do_not_count(workplace: Workplace) -> None:
    text = "search: {space: {train.global_batch: {choice: [32, 33, 35, 37]}, train.lr: {log: [1.0e-5, 1.0e-1]}}, sampler: random, budget: {trials: 4}}\n"
    definition = define(workplace, text)
    assert search(definition) == 0
    trials = trials_of(definition)
    refused = [trial for trial in trials if trial.state == "pruned"]
    assert refused
    assert {trial.point["train.global_batch"] for trial in trials if trial not in refused} == {32}
    assert "cannot be divided exactly over 2 processes" in refused[0].reason
    assert len(trials) - len(refused) == 4


def test_when_every_point_is_refused_the_search_says_why(workplace: Workplace) -> None:
    definition = define(workplace, "search: {space: {train.global_batch: {choice: [33, 35]}}, sampler: random}\n")
    with pytest.raises(UserError, match="50 points in a row cannot be trained; the last: .*cannot be divided exactly"):
        search(definition)


def test_a_point_that_was_tried_before_is_not_trained_again(workplace: Workplace) -> None:
    definition = define(
        workplace, "search: {space: {train.seed: {choice: [1, 2]}}, sampler: random, budget: {trials: 9}}\n"
    )
    runs = FormulaRuns()
    assert search(definition, runs) == 0
    assert len(runs.started) == len(set(runs.started)) == 2
    trials = trials_of(definition)
    finished = [trial.number for trial in trials if trial.state == "finished"]
    reasons = {trial.reason for trial in trials if trial.state == "repeated"}
    assert reasons == {f"the same run as trial {number}" for number in finished}


def test_a_grid_tries_every_point_once(workplace: Workplace) -> None:
    definition = define(
        workplace, "search: {space: {train.seed: {int: [1, 3]}, train.lr: {choice: [1.0e-3, 1.0e-2]}}, sampler: grid}\n"
    )
    assert search(definition) == 0
    points = [(trial.point["train.seed"], trial.point["train.lr"]) for trial in trials_of(definition)]
    assert points == [(seed, lr) for seed in (1, 2, 3) for lr in (1e-3, 1e-2)]


def test_a_run_that_fails_is_retried_as_the_requeue_policy_says_and_then_pruned(workplace: Workplace) -> None:
    definition = define(workplace, "search: {space: {train.lr: {choice: [1.0e-3, 1.0e-2]}}, sampler: grid}\n")
    runs = FormulaRuns(failures=[1e-3])
    assert search(definition, runs) == 0
    failed, finished = trials_of(definition)
    assert (failed.state, finished.state) == ("pruned", "finished")
    assert "RuntimeError: broken" in failed.reason
    assert Counter(runs.started)[failed.run] == 2


def test_when_all_trials_fail_the_search_ends_early(workplace: Workplace) -> None:
    rates = [1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5]
    definition = define(workplace, f"search: {{space: {{train.lr: {{choice: {rates}}}}}, sampler: grid}}\n")
    runs = FormulaRuns(failures=rates)
    with pytest.raises(UserError, match="5 trials have failed and none has a score: .*RuntimeError: broken"):
        search(definition, runs)
    assert len(set(runs.started)) == 5


def test_promotion_trains_fewer_steps_and_finds_the_best(workplace: Workplace) -> None:
    definition = define(workplace, ASHA, "search.budget.trials=8")
    assert search(definition) == 0
    trials = trials_of(definition)
    by_final_score = sorted(trials, key=lambda trial: -trial.scores.get(4, 0))
    assert better_first(trials, maximize=True)[0].run == by_final_score[0].run
    assert all(trial.rungs == (4, 8, 16, 20) for trial in trials)
    assert sum(trial.is_paused for trial in trials) >= 4


def test_the_median_stops_running_trials_and_says_why(workplace: Workplace) -> None:
    text = f"{SPACE}, pruning: {{name: median, first: 4 steps, trials: 3}}, parallel: 3}}\n"
    definition = define(workplace, text, "search.budget.trials=10")
    assert search(definition, StepwiseRuns()) == 0
    trials = trials_of(definition)
    stopped = [trial for trial in trials if trial.state == "pruned"]
    assert stopped
    assert all("is worse than" in trial.reason and min(trial.scores) == 2 for trial in stopped)
    assert all(max(trial.scores) >= 4 for trial in stopped)
    assert max(trials, key=lambda trial: trial.best_score or 0).state == "finished"


def test_no_trial_is_started_once_the_hours_are_used_up(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "_hours", lambda folder: 1.0)
    definition = define(workplace, SPACE + "}\n", "search.budget={trials: 9, gpu_hours: 3.5}")
    assert search(definition) == 0
    assert len(trials_of(definition)) == 4


def test_a_trial_stops_below_the_median_of_enough_others() -> None:
    def trial(number: int, score: float) -> Trial:
        return Trial(number, "finished", {}, scores={2: score / 2, 4: score})

    others = [trial(1, 0.5), trial(2, 0.7), trial(3, 0.9)]
    bad, good = trial(0, 0.6), trial(0, 0.8)
    assert "0.6000 is worse than 0.7000, the median of 3 trials at step 4" in worse_than_median(bad, others, 2, 3, True)
    assert worse_than_median(good, others, 2, 3, True) == ""
    assert worse_than_median(good, others, 2, 3, False) != ""
    assert worse_than_median(bad, others, 2, 4, True) == "", "too few others"
    assert worse_than_median(bad, others, 5, 3, True) == "", "too early"
