"""Searches whose trials are trained by a formula, so that hundreds of kills take seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.storages.journal import JournalFileBackend

from launch.planning import PlannedRun
from launch.run_state import RunState, state_of
from launch.search.definition import Definition, read_definition
from launch.search.planner import Planner
from launch.search.run import control
from launch.search.study import Study
from launch.search.trial import Trial
from sft_dist.recipe.files import append_line, write_json
from sft_dist.run.attempt import LAST_STEP
from sft_dist.run.folder import RunFolder
from sft_dist.run.requeue_policy import saved_step
from tests.launch.conftest import RECIPE, Workplace

BASE = RECIPE.replace("epochs: 2}", "epochs: 2, eval_every: 2 steps}")  # 20 steps


class Killed(BaseException):
    """What a kill is to a process."""


class Kill:
    """Kills at the n-th point that it passes."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.passed = at, 0

    def point(self) -> None:
        self.passed += 1
        if self.passed == self.at + 1:
            raise Killed

    @contextmanager
    def in_journal(self) -> Iterator[None]:
        """Kills before a line is written, within it, and after it."""
        append = JournalFileBackend.append_logs

        def torn(backend: JournalFileBackend, logs: list[dict[str, object]]) -> None:
            self.point()
            try:
                self.point()
            except Killed:
                with open(backend._file_path, "ab") as file:
                    file.write(json.dumps(logs[0]).encode()[:20])
                raise
            append(backend, logs)
            self.point()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(JournalFileBackend, "append_logs", torn)
            yield


class FormulaRuns:
    """Trains at once: the score rises with the steps towards a height that the learning rate decides about."""

    def __init__(self, kill: Kill | None = None, failures: Iterable[float] = ()) -> None:
        self.kill = kill or Kill()
        self.failures = tuple(failures)  # learning rates of runs that fail
        self.started: list[str] = []

    def states(self, folders: Sequence[Path]) -> dict[Path, RunState]:
        return {folder: state_of(folder) for folder in folders if (folder / "recipe.json").is_file()}

    def start(self, runs: Sequence[PlannedRun]) -> None:
        for run in runs:
            self.kill.point()
            folder = RunFolder(run.plan.folder)
            folder.create(run.run.recipe)
            self.kill.point()
            self._train(folder, run)
            self.kill.point()

    def _train(self, folder: RunFolder, run: PlannedRun) -> None:
        self.started.append(folder.id)
        attempt = folder.new_attempt()
        lr = run.run.recipe.train.lr
        first = saved_step(folder)
        if lr in self.failures:
            error = {"rank": 0, "host": "h", "type": "RuntimeError", "message": "broken", "time": 1.0, "step": 3}
            write_json(attempt.error_file(0), error)
            return
        assert run.plan.steps
        last = int(run.plan.env.get(LAST_STEP) or run.plan.steps.total)
        for step in run.plan.steps.eval_points:
            if first < step <= last:
                write_score(folder, attempt.number, lr, step)
        folder.checkpoint(last).mkdir(parents=True)
        write_json(folder.checkpoint(last) / "manifest.json", {})
        state = "finished" if last == run.plan.steps.total else "stopped"
        write_json(attempt.outcome_file, {"state": state, "last_step": last})

    def stop(self, folders: Iterable[Path]) -> None:
        return None

    def wait(self) -> None:
        return None

    def close(self) -> None:
        return None


class StepwiseRuns(FormulaRuns):
    """Trains to the next validation of each run whenever the controller waits."""

    def __init__(self) -> None:
        super().__init__()
        self._running: dict[Path, tuple[PlannedRun, int]] = {}

    def states(self, folders: Sequence[Path]) -> dict[Path, RunState]:
        states = super().states(folders)
        running = {folder: replace(states[folder], state="running") for folder in self._running if folder in states}
        return {**states, **running}

    def start(self, runs: Sequence[PlannedRun]) -> None:
        for run in runs:
            RunFolder(run.plan.folder).create(run.run.recipe)
            RunFolder(run.plan.folder).new_attempt()
            self._running[run.plan.folder] = (run, 0)

    def wait(self) -> None:
        for path, (run, step) in list(self._running.items()):
            assert run.plan.steps
            following = next(point for point in run.plan.steps.eval_points if point > step)
            write_score(RunFolder(path), 1, run.run.recipe.train.lr, following)
            self._running[path] = (run, following)
            if following == run.plan.steps.total:
                self._end(path, "finished")

    def stop(self, folders: Iterable[Path]) -> None:
        for folder in list(folders):
            self._end(folder, "stopped")

    def _end(self, path: Path, state: str) -> None:
        _, step = self._running.pop(path)
        write_json(RunFolder(path).all_attempts()[-1].outcome_file, {"state": state, "last_step": step})


def write_score(folder: RunFolder, attempt: int, lr: float, step: int) -> None:
    """Adds a validation to the metrics."""
    line = {"kind": "validation", "attempt": attempt, "step": step, "time": 0.0, "accuracy": score(lr, step)}
    append_line(folder.metrics_file, json.dumps(line))


def score(lr: float, step: int) -> float:
    return (1 - abs(math.log10(lr) + 3) / 4) * (1 - 0.9**step)


def define(workplace: Workplace, search: str, *overrides: str) -> Definition:
    """A search of `demo.yaml`."""
    workplace.recipe.write_text(BASE + search)
    definition = read_definition(str(workplace.recipe), overrides, workplace.path / "runs")
    definition.folder.mkdir(parents=True, exist_ok=True)
    return definition


def search(definition: Definition, runs: FormulaRuns | None = None) -> int:
    return control(definition, Planner(definition), runs or FormulaRuns())


def trials_of(definition: Definition) -> list[Trial]:
    study = Study.read(definition.folder, definition.space)
    return study.trials() if study else []
