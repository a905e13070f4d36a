"""Prints a run's logs, and goes on printing while it runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from launch.run_state import is_running
from sft_dist.recipe.errors import UserError
from sft_dist.run.folder import AttemptFolder, RunFolder

POLL_S = 0.3
ASK_S = 30.0  # between questions to Slurm
LAST_S = 1.0  # what the batch script says last comes a moment after its verdict


def log_file(folder: RunFolder, attempt: int | None, rank: int | None) -> Path:
    """The launcher's log (all that was printed), or one rank's. Raises UserError when there is none."""
    attempts = folder.all_attempts()
    if not attempts:
        raise UserError(f"{folder.path.parent.name}/{folder.id} was never started")
    chosen = attempts[-1] if attempt is None else AttemptFolder(folder.attempts / f"{attempt:03d}")
    if chosen.path not in [known.path for known in attempts]:
        numbers = ", ".join(str(known.number) for known in attempts)
        raise UserError(f"there is no attempt {attempt}; there are: {numbers}")
    if rank is not None:
        file = chosen.rank_log(rank)
    else:
        # Training that was started without the launcher has only the ranks' own logs.
        file = chosen.launcher_log if chosen.launcher_log.exists() else chosen.rank_log(0)
    if not file.exists():
        logs = ", ".join(sorted(path.name for path in chosen.path.glob("*.log"))) or "none"
        raise UserError(f"{file.name} is not in attempt {chosen.number}; logs there: {logs}")
    return file


def show(folder: RunFolder, file: Path, follow: bool) -> None:
    """Copy the log to standard output; with `follow`, until the run has ended."""
    with file.open("rb") as stream:
        while True:
            running = is_running(folder)  # asked before reading, so that the last lines are not missed
            while chunk := stream.read(1 << 16):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            if not (follow and running):
                return
            time.sleep(POLL_S)


def follow(folder: RunFolder, rank: int | None) -> None:
    """Copy the log of the newest attempt, and of those that follow it, until the run has ended."""
    live = _Live(folder)
    if not folder.all_attempts() and not live.goes_on():
        log_file(folder, None, rank)  # says that it was never started
    shown = 0
    while True:
        more = live.goes_on()  # asked before reading, so that the last lines are not missed
        for attempt in folder.all_attempts():
            if attempt.number <= shown or (shown == 0 and attempt.number < folder.all_attempts()[-1].number):
                continue
            file = _wait_for_log(folder, attempt, rank, live)
            if file is None:
                continue
            if shown:
                _write(f"\n=== attempt {attempt.number} ===\n".encode())
            shown = attempt.number
            _copy(folder, attempt, file, live)
        if not more and (not folder.all_attempts() or shown == folder.all_attempts()[-1].number):
            return
        time.sleep(POLL_S)


def _copy(folder: RunFolder, attempt: AttemptFolder, file: Path, live: _Live) -> None:
    """Until the attempt is over: another has begun, or the run does not go on."""
    with file.open("rb") as stream:
        while True:
            over = folder.all_attempts()[-1].number > attempt.number or not live.goes_on()
            time.sleep(LAST_S if over and folder.jobs_file.exists() else 0)
            while chunk := stream.read(1 << 16):
                _write(chunk)
            if over:
                return
            time.sleep(POLL_S)


def _wait_for_log(folder: RunFolder, attempt: AttemptFolder, rank: int | None, live: _Live) -> Path | None:
    """An attempt's log; ranks open theirs some time after the start. None when it never comes."""
    while True:
        more = live.goes_on() and folder.all_attempts()[-1].number == attempt.number
        try:
            return log_file(folder, attempt.number, rank)
        except UserError:
            if not more:
                return None
        time.sleep(POLL_S)


class _Live:
    """Whether a run goes on: a process holds it here, or its job is in the queue. Slurm is asked when an attempt has ended,
    and else not often."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._asked = float("-inf")
        self._queued = False
        self._judged = 0

    def goes_on(self) -> bool:
        if is_running(self._folder):
            return True
        if not self._folder.jobs_file.exists():
            return False
        judged = sum(attempt.decision_file.exists() for attempt in self._folder.all_attempts())
        if judged > self._judged or time.monotonic() - self._asked >= ASK_S:
            from launch.slurm.queue import is_queued

            self._queued = is_queued(self._folder.path)
            self._asked = time.monotonic()
            self._judged = judged
        return self._queued


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
