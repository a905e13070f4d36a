"""Which trial is promoted next: successive halving, asynchronously (ASHA, Li et al. 2018, arXiv 1810.05934, algorithm 2). Pure.

A trial pauses at a rung and is promoted by resuming the same run. Nothing waits for the trials that are still on their way.
"""

from __future__ import annotations

from collections.abc import Sequence

from launch.search.trial import Trial
from sft_dist.recipe.arithmetic import Steps
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import AshaPruning, Search
from sft_dist.recipe.units import amount_in_steps


def rungs_of(steps: Steps, pruning: AshaPruning) -> tuple[int, ...]:
    """Returns the steps first x eta^k, each at the next validation; the last is that of all steps. Raises UserError when no step
    before the last is validated."""
    step = float(steps.total) / pruning.eta**2
    if pruning.first:
        step = max(1.0, float(amount_in_steps(pruning.first, steps.total, steps.steps_per_epoch)))
    rungs: list[int] = []
    while step < steps.total:
        point = next(point for point in steps.eval_points if point >= step - 1e-9)
        if point < steps.total and point not in rungs:
            rungs.append(point)
        step *= pruning.eta
    if not rungs:
        hint = f"its validations are at {', '.join(map(str, steps.eval_points[:5]))} of {steps.total} steps; set train.eval_every"
        raise UserError(
            Problem("no validation comes before the last step, so no trial can pause", "search.pruning", hint=hint)
        )
    return (*rungs, steps.total)


def rungs_for(steps: Steps | None, search: Search) -> tuple[int, ...]:
    """Returns the steps at which a trial pauses, the last of all included. Raises UserError."""
    if isinstance(search.pruning, AshaPruning):
        if steps is None:
            hint = "set train.steps, or search without asha"
            raise UserError(
                Problem("the number of steps is not known before the data is read", "search.pruning", hint=hint)
            )
        return rungs_of(steps, search.pruning)
    return (steps.total,) if steps else ()


def next_promotion(trials: Sequence[Trial], eta: int, maximize: bool) -> Trial | None:
    """Returns the paused trial to promote: the best of the highest rung of which one in `eta` may continue."""
    for rung in reversed(range(_num_rungs(trials) - 1)):
        ranking = _ranking(trials, rung, maximize)
        for trial in ranking[: len(ranking) // eta]:
            if trial.is_paused and trial.rung == rung:
                return trial
    return None


def last_promotion(trials: Sequence[Trial], maximize: bool) -> Trial | None:
    """Returns the trial to promote when no others will come: the best of the highest rung, unless a trial was trained in full."""
    if any(trial.state == "finished" for trial in trials):
        return None
    for rung in reversed(range(_num_rungs(trials))):
        if paused := [trial for trial in _ranking(trials, rung, maximize) if trial.is_paused and trial.rung == rung]:
            return paused[0]
    return None


def _num_rungs(trials: Sequence[Trial]) -> int:
    return max((len(trial.rungs) for trial in trials), default=0)


def _ranking(trials: Sequence[Trial], rung: int, maximize: bool) -> list[Trial]:
    """Returns trials with a score at a rung, the best first."""
    scored = [trial for trial in trials if rung < len(trial.rungs) and trial.rungs[rung] in trial.scores]
    sign = -1 if maximize else 1
    return sorted(scored, key=lambda trial: (sign * trial.scores[trial.rungs[rung]], trial.number))
