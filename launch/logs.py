"""Prints a run's logs, and goes on printing while it runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from launch.ledger import is_running
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.run_folder import AttemptFolder, RunFolder

POLL_S = 0.3


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
