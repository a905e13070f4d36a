"""Records one start of a run in files of each rank: what started, which rank failed first and why, how it ended.

The launcher reads these files instead of exit codes, which `accelerate launch` and srun turn into 1 or 143.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
import traceback
from datetime import datetime, timezone
from typing import Any

from sft_dist.recipe.errors import InUse, UserError
from sft_dist.recipe.files import read_object, write_json
from sft_dist.run.folder import AttemptFolder, RunFolder
from sft_dist.run.locks import is_locked, open_lock_file, try_acquire
from sft_dist.run.requeue_policy import slurm_job

log = logging.getLogger("sft_dist")

LAST_STEP = "SFT_DIST_LAST_STEP"  # step at which an attempt pauses; a search sets it for every rank alike


def timestamp() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def is_running(folder: RunFolder) -> bool:
    """Whether a trainer holds the run's lock, or a process of the last attempt still has its output open (it is starting)."""
    attempts = folder.all_attempts()
    files = [folder.lock_file, *([attempts[-1].launcher_log] if attempts else [])]
    return any(is_locked(file) for file in files)


def has_ended(folder: RunFolder) -> bool:
    """Whether a run was started and no process trains it any more. A job that Slurm will start again counts as ended."""
    attempts = folder.all_attempts()
    finished = any(read_object(attempt.outcome_file).get("state") == "finished" for attempt in attempts)
    return finished or (bool(attempts) and not is_running(folder))


def take_lock(folder: RunFolder) -> int:
    """Holds the run for this process, until the process ends. Raises InUse."""
    descriptor = open_lock_file(folder.lock_file)
    # A killed trainer's other processes may need a moment to end.
    for _ in range(50):
        if not try_acquire(descriptor):
            time.sleep(0.1)
            continue
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())
        return descriptor
    holder = os.read(descriptor, 200).decode(errors="replace").strip()
    os.close(descriptor)
    raise InUse(f"{folder.path}: another process is training this run ({holder}); see `sft-dist status`")


def open_attempt(folder: RunFolder) -> AttemptFolder:
    """Returns the attempt that the launcher named in the environment, or makes the next one."""
    if number := os.environ.get("SFT_DIST_ATTEMPT"):
        attempt = AttemptFolder(folder.attempts / f"{int(number):03d}")
        attempt.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return attempt
    return folder.new_attempt()


def last_step(total: int) -> int:
    """Returns the step after which this attempt ends: the last of all, unless a search pauses the run before it."""
    return min(total, int(os.environ.get(LAST_STEP) or total))


def start_logging(attempt: AttemptFolder, rank: int) -> None:
    """Logs to the rank's own file. Rank 0 also logs to the terminal; all other output of the others goes to their file."""
    handlers: list[logging.Handler] = [logging.FileHandler(attempt.rank_log(rank))]
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
    else:
        # Native crashes and libraries write to the descriptors, not to Python's streams.
        with attempt.rank_log(rank).open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s rank {rank} %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )


def record_error(attempt: AttemptFolder, rank: int, step: int, error: BaseException) -> None:
    """Writes `rank-N.error.json`; the earliest one names the rank that failed first."""
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        write_json(
            attempt.error_file(rank),
            {
                "rank": rank,
                "host": socket.gethostname(),
                "time": time.time(),
                "step": step,
                "type": type(error).__name__,
                "message": str(error),
                "traceback": "".join(traceback.format_exception(error)),
                "user_error": isinstance(error, UserError),
            },
        )


def record_outcome(attempt: AttemptFolder, state: str, last_step: int, reason: str) -> None:
    """Writes `outcome.json`: the attempt ended in an orderly way."""
    write_json(attempt.outcome_file, {"state": state, "last_step": last_step, "time": timestamp(), "reason": reason})


def job_facts() -> dict[str, Any]:
    """Returns the Slurm job of this process and its nodes; empty elsewhere."""
    env = os.environ
    if not (job := slurm_job(env)):
        return {}
    return {
        "job_id": job,
        "restart_count": int(env.get("SLURM_RESTART_COUNT") or 0),
        "nodes": env.get("SLURM_JOB_NODELIST", ""),
    }


def record_start(attempt: AttemptFolder, **facts: Any) -> None:
    """Writes `start.json`."""
    write_json(
        attempt.start_file,
        {"attempt": attempt.number, "time": timestamp(), "host": socket.gethostname(), "pid": os.getpid(), **facts},
    )
