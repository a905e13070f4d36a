"""Runs a run folder on this machine through `accelerate launch`, and waits until all of its processes have ended."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from launch.local.processes import TOKEN, Guard, end_all, new_token
from launch.local.progress import Progress
from launch.plan import Plan
from launch.run_state import RunState, state_of
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_json
from sft_dist.recipe.units import seconds_of
from sft_dist.run.attempt import is_running, timestamp
from sft_dist.run.folder import AttemptFolder, RunFolder
from sft_dist.run.hang_watcher import HangDetector, detect_hang
from sft_dist.run.locks import acquire

POLL_S = 0.2
HEARTBEAT_CHECK_S = 1.0
IMPATIENT_S = 5.0  # between the second Ctrl-C and SIGKILL


class LocalRunner:
    """`accelerate launch` in a session of its own, so that a Ctrl-C on the terminal reaches only this process.

    The first Ctrl-C (or SIGTERM) makes the run save and exit, the second ends it at once.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.interrupted = False

    def run(self, folder: RunFolder, plan: Plan) -> RunState:
        """Starts a new attempt and waits for its end. A run that hangs is restarted once. Raises UserError when it is running."""
        if is_running(folder):
            raise UserError(f"{plan.name}/{folder.id} is already running; see `sft-dist status` and `sft-dist logs -f`")
        attempt = self._attempt(folder, plan)
        if attempt.hang_file.exists() and not self.interrupted:
            print(f"{state_of(folder.path).cause}\nrestarting it", file=self._stream, flush=True)
            self._attempt(folder, plan)
        return state_of(folder.path)

    def _attempt(self, folder: RunFolder, plan: Plan) -> AttemptFolder:
        folder.stop_file.unlink(missing_ok=True)
        attempt = folder.new_attempt()
        token = new_token()
        progress = Progress(folder.metrics_file, self._stream)
        progress.say(f"attempt {attempt.path.name}; output in {attempt.launcher_log}")
        detector = HangDetector(attempt, seconds_of(folder.recipe().resources.hang_timeout))
        with _counted_signals() as signals:
            guard = Guard.start(token)
            try:
                process = _start(folder, plan, attempt, token)
                guard.spare(process.pid)
                killed = self._follow(process, folder, progress, signals, token, detector)
            finally:
                guard.dismiss()
            folder.stop_file.unlink(missing_ok=True)
            _record_exit(attempt, process.returncode, killed)
        return attempt

    def _follow(
        self,
        process: subprocess.Popen[bytes],
        folder: RunFolder,
        progress: Progress,
        signals: list[int],
        token: str,
        detector: HangDetector,
    ) -> bool:
        """Waits for the end, and shows progress. Returns True when the run had to be killed."""
        stopping = False
        next_check = time.monotonic()
        while process.poll() is None:
            progress.update()
            if signals and not stopping:
                stopping = self.interrupted = True
                progress.say("stopping: saving a checkpoint after this step (Ctrl-C again ends it at once)")
            if signals and not folder.stop_file.exists():
                folder.stop_file.touch(mode=0o600)  # repeatedly: a trainer that is still starting removes old ones
            hangs = False
            if time.monotonic() >= next_check:
                next_check = time.monotonic() + HEARTBEAT_CHECK_S
                hangs = detect_hang(detector) is not None
            if hangs or len(signals) > 1:
                progress.say("the run hangs; ending it" if hangs else "ending it now")
                end_all(token, IMPATIENT_S if len(signals) == 2 else 0)
                process.wait()
                progress.close()
                return True
            time.sleep(POLL_S)
        self.interrupted = self.interrupted or bool(signals)
        progress.close()
        return False


def _start(folder: RunFolder, plan: Plan, attempt: AttemptFolder, token: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, **plan.env, TOKEN: token, "SFT_DIST_ATTEMPT": str(attempt.number)}
    if user_path := os.environ.get("PYTHONPATH"):
        env["PYTHONPATH"] = os.pathsep.join(
            [plan.env["PYTHONPATH"], *map(os.path.abspath, user_path.split(os.pathsep))]
        )
    log = os.open(attempt.launcher_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        acquire(log)  # with every process that inherits the file: locked means that one of them is alive
        # In the run folder: `python -m` looks there first, and must not find another sft_dist than the sealed one.
        return subprocess.Popen(
            plan.argv,
            cwd=folder.path,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)


def _record_exit(attempt: AttemptFolder, returncode: int, killed: bool) -> None:
    ended = timestamp()
    write_json(attempt.exit_file, {"returncode": returncode, "time": ended, "killed": killed})


@contextmanager
def _counted_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of ending."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_in_this_process(folder: RunFolder, plan: Plan) -> int:
    """Trains in this process, so that breakpoints and debuggers work; returns the exit code. Raises UserError.

    It runs the installed code, where the breakpoints are, not the run folder's copy.
    """
    if plan.world_size != 1:
        raise UserError(f"--debug runs in one process, but {plan.world_size} are planned; add --processes 1")
    if is_running(folder):
        raise UserError(f"{plan.name}/{folder.id} is already running")
    folder.stop_file.unlink(missing_ok=True)
    os.environ.update({key: value for key, value in plan.env.items() if key != "PYTHONPATH"})
    if plan.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    sys.argv = ["sft_dist.train", str(folder.path)]
    try:
        runpy.run_module("sft_dist.train", run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    return 0
