"""Which Slurm jobs belong to a run: one line each in the run's `jobs.jsonl`, written when it was handed over."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sft_dist.run.folder import RunFolder


@dataclass(frozen=True)
class JobRecord:
    """One job, or one task of a job array."""

    job: str  # as sbatch printed it: "1234"
    task: int | None  # index in the array
    cluster: str
    kind: str  # "train", "score" (its checkpoints, on validation) or "eval" (of all runs: choose, test, export)
    time: str  # ISO, of submission

    @property
    def id(self) -> str:
        """As squeue and sacct print it: `1234`, `1234_5`."""
        return self.job if self.task is None else f"{self.job}_{self.task}"


def record_job(folder: RunFolder, record: JobRecord) -> None:
    """One write, so that lines of two processes never mix."""
    descriptor = os.open(folder.jobs_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, (json.dumps(vars(record)) + "\n").encode())
    finally:
        os.close(descriptor)


def jobs_of(path: Path) -> list[JobRecord]:
    """Every job of a run, oldest first. Lines that are not whole are left out: the file may be growing."""
    try:
        lines = RunFolder(path).jobs_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return list(_whole(lines))


def _whole(lines: Iterable[str]) -> Iterable[JobRecord]:
    for line in lines:
        try:
            yield JobRecord(**json.loads(line))
        except (ValueError, TypeError):
            continue
