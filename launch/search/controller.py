"""Decides what a search does next. Re-enterable: every decision follows from the journal and the run folders alone.

A trial is reserved in the journal before its run exists, a promotion is recorded before the run is resumed, and a result is
recorded only once. So a controller that is killed anywhere is continued by the same command, with no trial lost or repeated.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.planning import PlannedRun
from launch.report.attempts import attempts_of, cost_of
from launch.report.curves import read_metrics
from launch.run_state import RunState
from launch.search.definition import Definition
from launch.search.planner import Planner, pausing_at
from launch.search.promotion import last_promotion, next_promotion, rungs_for
from launch.search.runners import IN_PROGRESS, Runner
from launch.search.study import Study
from launch.search.trial import Trial
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import AshaPruning, MedianPruning
from sft_dist.recipe.text import printable
from sft_dist.recipe.units import amount_in_steps
from sft_dist.run.causes import read_facts
from sft_dist.run.folder import RunFolder
from sft_dist.run.requeue_policy import decide, history_of
from sft_dist.run.varying import describe_settings

MAX_REFUSALS = 50  # points in a row that cannot be trained, or that were tried before
MAX_FAILURES = 5  # trials that fail before any has a score


class Controller:
    """Runs a search. Needs its lease."""

    def __init__(self, definition: Definition, study: Study, planner: Planner, runner: Runner) -> None:
        self._definition, self._study, self._planner, self._runner = definition, study, planner, runner
        self._search, self._objective = definition.search, definition.objective
        self._hours: dict[str, float] = {}  # of trials that have ended, by run
        self._plans: dict[int, PlannedRun] = {}  # by number of the trial

    def cycle(self) -> bool:
        """Records what has ended and starts what may start. Returns whether the search continues. Raises UserError."""
        states = self._runner.states([self._folder(trial) for trial in self._active()])
        idle = [trial for trial in self._active() if not self._record(trial, states.get(self._folder(trial)))]
        self._require_progress()
        idle += self._next_trials(len(self._active()))
        self._runner.start([self._resumed(trial) for trial in idle])
        return bool(self._active())

    def stop(self) -> None:
        """Asks all runs to save and end."""
        self._runner.stop([self._folder(trial) for trial in self._active()])

    # ── what has ended ──────────────────────────────────────────────────────────────────────────────────────────────
    def _record(self, trial: Trial, state: RunState | None) -> bool:
        """Records how a trial is doing. Returns False when its run has to be started, or resumed."""
        if state is None:
            return False
        folder = self._folder(trial)
        if state.state == "finished":
            self._finish(trial, folder)
        elif state.state in IN_PROGRESS:
            self._watch(trial, folder)
        elif trial.reason:
            self._prune(trial, trial.reason)
        elif state.state == "stopped" and trial.last_step is not None and state.step >= trial.last_step:
            self._pause(trial, folder, trial.last_step)
        elif state.state in ("failed", "killed") and (reason := _final_failure(RunFolder(folder), state)):
            self._prune(trial, reason)
        else:
            return False
        return True

    def _finish(self, trial: Trial, folder: Path) -> None:
        scores = self._objective.scores(folder)
        if not scores:
            self._prune(trial, f"{self._objective.metric} was never defined")
            return
        self._study.finish(trial, scores[max(scores)])
        self._say(trial, f"finished, {self._objective.metric} {scores[max(scores)]:.4f}")

    def _pause(self, trial: Trial, folder: Path, step: int) -> None:
        scores = {at: score for at, score in self._objective.scores(folder).items() if at <= step}
        if not scores:
            self._prune(trial, f"{self._objective.metric} was not defined up to step {step}")
            return
        self._study.report(trial, step, scores[max(scores)])
        self._say(trial, f"paused at step {step}, {self._objective.metric} {scores[max(scores)]:.4f}")

    def _watch(self, trial: Trial, folder: Path) -> None:
        """Stops a running trial that is worse than the median of the others (Golovin et al. 2017, Vizier)."""
        pruning = self._search.pruning
        if not isinstance(pruning, MedianPruning):
            return
        if trial.reason:  # an earlier controller may have ended before it asked the run
            self._runner.stop([folder])
            return
        for step, score in self._objective.scores(folder).items():
            if step not in trial.scores:
                self._study.report(trial, step, score)
        (trial,) = [current for current in self._study.trials() if current.number == trial.number]
        steps = self._plan(trial).plan.steps
        first = amount_in_steps(pruning.first, steps.total, steps.steps_per_epoch) if steps else 0
        if reason := worse_than_median(trial, self._study.trials(), first, pruning.trials, self._objective.maximize):
            self._study.condemn(trial, reason)
            self._say(trial, f"stopping: {reason}")
            self._runner.stop([folder])

    def _prune(self, trial: Trial, reason: str) -> None:
        self._study.prune(trial, reason)
        self._say(trial, f"pruned: {reason}")

    def _require_progress(self) -> None:
        trials = self._study.trials()
        failures = [trial for trial in trials if trial.run and trial.state == "pruned" and not trial.scores]
        if len(failures) >= MAX_FAILURES and not any(trial.best_score is not None for trial in trials):
            reasons = "; ".join(dict.fromkeys(trial.reason for trial in failures))
            raise UserError(f"{len(failures)} trials have failed and none has a score: {reasons}")

    # ── what is next ────────────────────────────────────────────────────────────────────────────────────────────────
    def _next_trials(self, num_active: int) -> list[Trial]:
        started: list[Trial] = []
        while num_active + len(started) < self._search.parallel and (
            trial := self._next_trial(num_active + len(started))
        ):
            started.append(trial)
        return started

    def _next_trial(self, num_active: int) -> Trial | None:
        """Promotes a trial or reserves a new one; None when there is nothing to do but wait, or nothing at all."""
        if self._used_hours() >= (self._search.budget.gpu_hours or float("inf")):
            return None
        trials, pruning = self._study.trials(), self._search.pruning
        eta, maximize = pruning.eta if isinstance(pruning, AshaPruning) else 0, self._objective.maximize
        if eta and (trial := next_promotion(trials, eta, maximize)):
            return self._promote(trial)
        if sum(bool(trial.run) for trial in trials) < self._search.budget.trials and (new := self._reserve()):
            return new
        if eta and not num_active and (trial := last_promotion(trials, maximize)):
            return self._promote(trial)
        return None

    def _promote(self, trial: Trial) -> Trial:
        self._study.promote(trial, trial.rung + 1)
        self._say(trial, f"promoted to step {trial.rungs[trial.rung + 1]}")
        return self._study.trials()[trial.number]

    def _reserve(self) -> Trial | None:
        """Returns a new trial that can be trained; None when no further points are to be had."""
        reason = ""
        for _ in range(MAX_REFUSALS):
            point = self._study.next_point(self._search, self._objective.maximize)
            if point is None:
                return None
            try:
                planned = self._planner.plan(point)
                rungs = rungs_for(planned.plan.steps, self._search)
            except UserError as error:
                reason = error.problems[0].render().replace("\n", " ")
                self._study.refuse(point, reason)
                continue
            if earlier := next((trial for trial in self._study.trials() if trial.run == planned.run.id), None):
                self._study.repeat(point, earlier)
                continue
            self._study.reserve(point, planned.run.id, rungs)
            trial = self._study.trials()[-1]
            self._say(trial, describe_settings(trial.point))
            return trial
        if reason and not any(trial.run for trial in self._study.trials()):
            raise UserError(f"{MAX_REFUSALS} points in a row cannot be trained; the last: {reason}")
        return None

    def _used_hours(self) -> float:
        """Returns hours of training processes, by the run folders."""
        if self._search.budget.gpu_hours is None:
            return 0.0
        trials = [trial for trial in self._study.trials() if trial.run]
        ended = {trial.run for trial in trials if not trial.is_active}
        fresh = {
            trial.run: _hours(self._definition.runs / trial.run) for trial in trials if trial.run not in self._hours
        }
        self._hours |= {run: hours for run, hours in fresh.items() if run in ended}
        return sum({**fresh, **self._hours}.values())

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────
    def _active(self) -> list[Trial]:
        return [trial for trial in self._study.trials() if trial.is_active]

    def _folder(self, trial: Trial) -> Path:
        return self._plan(trial).plan.folder

    def _plan(self, trial: Trial) -> PlannedRun:
        if trial.number not in self._plans:
            planned = self._planner.plan(trial.point)
            if planned.run.id != trial.run:
                message = f"trial {trial.number} has run {trial.run}, and would now have {planned.run.id}"
                raise UserError(Problem(message, hint="continue the search with the version of sft-dist that began it"))
            self._plans[trial.number] = planned
        return self._plans[trial.number]

    def _resumed(self, trial: Trial) -> PlannedRun:
        return pausing_at(self._plan(trial), trial.last_step)

    def _say(self, trial: Trial, text: str) -> None:
        print(printable(f"trial {trial.number}: {text}"), file=sys.stderr, flush=True)


def worse_than_median(trial: Trial, trials: Sequence[Trial], first: int, min_peers: int, maximize: bool) -> str:
    """Returns why a trial should stop; empty when it may continue. Pure."""
    step = max(trial.scores, default=0)
    if not step or step < first:
        return ""
    peers = [score for peer in trials if peer.number != trial.number and (score := _score_at(peer, step)) is not None]
    if len(peers) < min_peers:
        return ""
    median = statistics.median(peers)
    score = trial.scores[step]
    is_worse = score < median if maximize else score > median
    return (
        f"{score:.4f} is worse than {median:.4f}, the median of {len(peers)} trials at step {step}" if is_worse else ""
    )


def _score_at(trial: Trial, step: int) -> float | None:
    """Returns the best score up to a step, of a trial that has reached it."""
    steps = [at for at in trial.scores if at <= step]
    return trial.scores[max(steps)] if steps and max(trial.scores) >= step else None


def _final_failure(folder: RunFolder, state: RunState) -> str:
    """Returns why a run that failed is not started again; empty when the requeue policy gives it another attempt."""
    if not state.attempts:
        return state.cause
    attempt = folder.all_attempts()[-1]
    history = history_of(folder, attempt.number, read_facts(attempt))
    return history[-1].end.line if decide(history).action == "stop" else ""


def _hours(folder: Path) -> float:
    run = RunFolder(folder)
    return float(cost_of(attempts_of(run, read_metrics(run.metrics_file)))["total"]) / 3600
