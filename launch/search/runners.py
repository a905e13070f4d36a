"""Starts the runs of trials and says how they are doing: as processes on this machine, or as jobs on a cluster.

Both work from the run folders, so a controller that was started again finds what an earlier one has started.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launch.planning import PlannedRun
from launch.run_folders import create_run_folder
from launch.run_state import RunState, state_of
from launch.subprocesses import end_with_parent
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.trust import Trust
from sft_dist.run.attempt import LAST_STEP, is_running
from sft_dist.run.folder import RunFolder
from sft_dist.run.locks import is_locked, open_lock_file, try_acquire
from sft_dist.run.subprocesses import environment, module_command

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster

POLL_S = 0.5
CLUSTER_POLL_S = 30.0
IN_PROGRESS = ("running", "pending", "ending")


class Runner(Protocol):
    """What a controller needs of the place where trials are trained."""

    def states(self, folders: Sequence[Path]) -> dict[Path, RunState]:
        """Returns the states of runs whose folder exists."""

    def start(self, runs: Sequence[PlannedRun]) -> None:
        """Starts or resumes runs, to the step that their plans name. Raises UserError."""

    def stop(self, folders: Iterable[Path]) -> None:
        """Asks runs to save and end."""

    def wait(self) -> None:
        """Waits a moment for something to change."""

    def close(self) -> None:
        """Waits for what cannot outlive this process."""


class LocalRuns:
    """Each run is a `sft-dist resume` in a process of its own, which ends with this one, after it has saved."""

    def __init__(self, folder: Path, processes: int | None = None) -> None:
        self._folder, self._processes = folder, processes
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._attempts: dict[Path, int] = {}  # that a run had before its process was started

    def states(self, folders: Sequence[Path]) -> dict[Path, RunState]:
        return {folder: self._state(folder) for folder in folders if (folder / "recipe.json").is_file()}

    def _state(self, folder: Path) -> RunState:
        child = self._children.get(folder)
        alive = child is not None and child.poll() is None
        state = state_of(folder)
        if alive or is_locked(self._lock(folder)):
            return replace(state, state="running")
        if child is not None and child.returncode and state.attempts == self._attempts[folder]:
            raise UserError(f"{folder}: its training did not start: {self._last_line(folder)}")
        return state

    def start(self, runs: Sequence[PlannedRun]) -> None:
        for run in runs:
            folder = create_run_folder(run.plan, run.run.recipe).path
            descriptor = open_lock_file(self._lock(folder))
            try:
                # Inherited by the process: locked means that it, or what it has started, is alive.
                if try_acquire(descriptor):
                    self._attempts[folder] = len(RunFolder(folder).all_attempts())
                    self._children[folder] = self._start(run, folder, descriptor)
            finally:
                os.close(descriptor)

    def _start(self, run: PlannedRun, folder: Path, lock: int) -> subprocess.Popen[bytes]:
        options = ["--processes", str(self._processes)] if self._processes else []
        options += Trust.in_recipes([run.run.recipe]).arguments()
        env = {**environment(), LAST_STEP: run.plan.env.get(LAST_STEP, "")}
        with self._log(folder).open("ab") as log:
            return subprocess.Popen(
                module_command("launch", ["resume", folder, *options]),
                env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock], preexec_fn=end_with_parent,
            )  # fmt: skip

    def stop(self, folders: Iterable[Path]) -> None:
        for folder in map(RunFolder, folders):
            if is_running(folder):
                folder.stop_file.touch(mode=0o600)

    def wait(self) -> None:
        time.sleep(POLL_S)

    def close(self) -> None:
        for child in self._children.values():
            child.wait()

    def _lock(self, folder: Path) -> Path:
        return self._folder / f"{folder.name}.lock"

    def _log(self, folder: Path) -> Path:
        return self._folder / f"{folder.name}.log"

    def _last_line(self, folder: Path) -> str:
        lines = self._log(folder).read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "no output"


class ClusterRuns:
    """Each run is a job; those that are started at the same moment are one job array."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def states(self, folders: Sequence[Path]) -> dict[Path, RunState]:
        from launch.slurm.queue import query_states

        existing = [str(folder) for folder in folders if (folder / "recipe.json").is_file()]
        states, answer, _ = query_states(existing, None) if existing else ([], None, [])
        if answer is not None and not answer.is_complete:
            raise UserError(f"Slurm does not answer: {answer.summary()}")
        return {Path(state.folder): state for state in states}

    def start(self, runs: Sequence[PlannedRun]) -> None:
        from launch.slurm.submit import submit

        if runs:
            submit(runs, self._cluster, evaluate=False)

    def stop(self, folders: Iterable[Path]) -> None:
        from launch.slurm.cancel import cancel, plan_cancellation

        if names := [str(folder) for folder in folders if folder.is_dir()]:
            cancel(plan_cancellation(names, Path()), at_once=False)

    def wait(self) -> None:
        time.sleep(CLUSTER_POLL_S)

    def close(self) -> None:
        return None
