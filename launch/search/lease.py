"""The one process that decides about a search. It holds a lock, which the kernel releases however the process ends.

A stopped or slow owner keeps its lease: two controllers would write into one journal. Where the file system has no locks, the
owner's own record decides: whether its process, or its Slurm job, still exists. The age of the record never does.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import InUse, Problem, UserError
from sft_dist.recipe.files import read_object
from sft_dist.run.attempt import timestamp
from sft_dist.run.locks import has_locks, open_lock_file, try_acquire
from sft_dist.run.requeue_policy import slurm_job

LOCK, OWNER = "lock", "owner.json"


@contextmanager
def lease(folder: Path) -> Iterator[None]:
    """Holds a search for this process. Raises InUse while another process does."""
    descriptor = open_lock_file(folder / LOCK)
    owner_file = folder / OWNER
    try:
        if not try_acquire(descriptor) or (not has_locks(descriptor) and may_live(read_object(owner_file))):
            raise _in_use(read_object(owner_file), owner_file)
        owner_file.unlink(missing_ok=True)
        try:
            _create(owner_file, _this_process())
        except FileExistsError:  # without locks, another process may do the same at this moment
            raise _in_use(read_object(owner_file), owner_file) from None
        yield
        owner_file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def may_live(owner: Mapping[str, Any]) -> bool:
    """Whether the recorded owner exists, as far as this machine can know."""
    if not owner:
        return False
    if owner.get("host") == socket.gethostname():
        return _start_ticks(int(owner.get("pid", 0))) == owner.get("start_ticks")
    if job := owner.get("job"):
        from launch.slurm.queue import read_queue  # searches on one machine never ask Slurm

        try:
            return job in read_queue()
        except UserError:
            return True
    return True


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "start_ticks": _start_ticks(pid),
        "job": slurm_job(os.environ),
        "time": timestamp(),
    }


def _start_ticks(pid: int) -> int | None:
    """Returns when a process started, by which it differs from a later one with its number; None without such a process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _create(file: Path, value: Mapping[str, Any]) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(value, stream)


def _in_use(owner: Mapping[str, Any], owner_file: Path) -> InUse:
    job = f", job {owner['job']}" if owner.get("job") else ""
    name = f"process {owner.get('pid')} on {owner.get('host')}{job}" if owner else "another process"
    hint = f"see `sft-dist search status`; if that process no longer exists, remove {owner_file}"
    return InUse(Problem(f"this search is controlled by {name}, since {owner.get('time', 'a moment ago')}", hint=hint))
