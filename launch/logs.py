"""Prints a run's logs, and follows them while it runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from launch.run_folders import all_run_folders
from launch.slurm.records import jobs_of, newest, output_of
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import irregular
from sft_dist.recipe.text import printable
from sft_dist.run.attempt import is_running
from sft_dist.run.folder import AttemptFolder, RunFolder
from sft_dist.run.varying import describe_settings, varying_between

POLL_S = 0.3
QUERY_S = 30.0  # between queries to Slurm
LAST_LINES_S = 1.0  # the batch script prints its last lines a moment after its decision is written


def log_file(folder: RunFolder, attempt: int | None, rank: int | None) -> Path:
    """Returns the launcher's log (all output), or one rank's. Raises UserError when there is none."""
    attempts = folder.all_attempts()
    if not attempts:
        if attempt is None and rank is None and (file := job_output(folder)):
            return file
        raise UserError(f"{folder.path.parent.name}/{folder.id} was never started")
    attempt_folder = attempts[-1] if attempt is None else AttemptFolder(folder.attempts / f"{attempt:03d}")
    if attempt_folder.path not in [existing.path for existing in attempts]:
        numbers = ", ".join(str(existing.number) for existing in attempts)
        raise UserError(f"there is no attempt {attempt}; the attempts are: {numbers}")
    if rank is not None:
        file = attempt_folder.rank_log(rank)
    else:
        # Without the launcher there are only the ranks' own logs.
        file = attempt_folder.launcher_log if attempt_folder.launcher_log.exists() else attempt_folder.rank_log(0)
    if not file.exists():
        logs = ", ".join(sorted(path.name for path in attempt_folder.path.glob("*.log"))) or "none"
        raise UserError(f"{file.name} is not in attempt {attempt_folder.number}; logs there: {logs}")
    if kind := irregular(file):  # reading a pipe would wait for a writer
        raise UserError(f"{file} is {kind}, not a file")
    return file


def job_output(folder: RunFolder) -> Path | None:
    """Returns the output of the newest job, which says why its start failed where there was no attempt."""
    record = newest(jobs_of(folder.path))
    file = output_of(folder.path, record) if record else None
    return None if file is None or irregular(file) else file


def print_log(folder: RunFolder, attempt: int | None, rank: int | None, follow: bool) -> None:
    """Prints one attempt's log, or with `follow` and no attempt, the logs of all that come. Raises UserError.

    What tells the run from those beside it goes to standard error, so that the output is the log alone.
    """
    settings = describe_settings(varying_between(all_run_folders(folder.path.parent)).get(folder.path, {}))
    if settings:
        print(f"{folder.path.parent.name}/{folder.id} ({printable(settings)})", file=sys.stderr, flush=True)
    if follow and attempt is None:
        follow_run(folder, rank)
    else:
        show(folder, log_file(folder, attempt, rank), follow)


def show(folder: RunFolder, file: Path, follow: bool) -> None:
    """Copies the log to standard output; with `follow`, until the run has ended."""
    with file.open("rb") as stream:
        while True:
            running = is_running(folder)  # checked before reading, so that the last lines are not missed
            while chunk := stream.read(1 << 16):
                _write(chunk)
            if not (follow and running):
                return
            time.sleep(POLL_S)


def follow_run(folder: RunFolder, rank: int | None) -> None:
    """Copies the log of the newest attempt, and of later ones, until the run has ended."""
    live = _Liveness(folder)
    if not folder.all_attempts():
        if not live.is_live():
            return show(folder, log_file(folder, None, rank), follow=False)  # raises when it was never started
        if (file := job_output(folder)) and rank is None:
            show(folder, file, follow=False)
    printed = 0  # number of the last attempt
    while True:
        is_live = live.is_live()  # checked before reading, so that the last lines are not missed
        for attempt in folder.all_attempts():
            if attempt.number <= printed or (printed == 0 and attempt.number < folder.all_attempts()[-1].number):
                continue
            file = _wait_for_log(folder, attempt, rank, live)
            if file is None:
                continue
            if printed:
                _write(f"\n=== attempt {attempt.number} ===\n".encode())
            printed = attempt.number
            _copy(folder, attempt, file, live)
        if not is_live and (not folder.all_attempts() or printed == folder.all_attempts()[-1].number):
            return None
        time.sleep(POLL_S)


def _copy(folder: RunFolder, attempt: AttemptFolder, file: Path, live: _Liveness) -> None:
    """Copies until the attempt is over: another has begun, or the run has ended."""
    with file.open("rb") as stream:
        while True:
            over = folder.all_attempts()[-1].number > attempt.number or not live.is_live()
            time.sleep(LAST_LINES_S if over and folder.jobs_file.exists() else 0)
            while chunk := stream.read(1 << 16):
                _write(chunk)
            if over:
                return
            time.sleep(POLL_S)


def _wait_for_log(folder: RunFolder, attempt: AttemptFolder, rank: int | None, live: _Liveness) -> Path | None:
    """Returns an attempt's log; ranks open theirs some time after the start. None when it never appears."""
    while True:
        is_live = live.is_live() and folder.all_attempts()[-1].number == attempt.number
        try:
            return log_file(folder, attempt.number, rank)
        except UserError:
            if not is_live:
                return None
        time.sleep(POLL_S)


class _Liveness:
    """Whether a run is live: a process holds it here, or its job is in the queue. Slurm is queried when an attempt has ended, and
    otherwise rarely."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._query_time = float("-inf")
        self._queued = False
        self._num_decided = 0

    def is_live(self) -> bool:
        if is_running(self._folder):
            return True
        if not self._folder.jobs_file.exists():
            return False
        num_decided = sum(attempt.decision_file.exists() for attempt in self._folder.all_attempts())
        if num_decided > self._num_decided or time.monotonic() - self._query_time >= QUERY_S:
            from launch.slurm.queue import is_queued  # runs without a job need no Slurm

            self._queued = is_queued(self._folder.path)
            self._query_time = time.monotonic()
            self._num_decided = num_decided
        return self._queued


def _write(data: bytes) -> None:
    """Prints a piece of a log. What a row or a library has written there must not control the terminal."""
    text = printable(data.decode("utf-8", "surrogateescape"))
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()
