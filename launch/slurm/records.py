"""Which Slurm jobs belong to a run: one line each in the run's `jobs.jsonl`, appended when the job was submitted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sft_dist.recipe.files import append_line, irregular
from sft_dist.run.folder import RunFolder


@dataclass(frozen=True)
class JobRecord:
    """One job, or one task of a job array, as it was submitted."""

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
    append_line(folder.jobs_file, json.dumps(vars(record)))


def jobs_of(path: Path) -> list[JobRecord]:
    """Returns every job of a run, oldest first. Incomplete lines are skipped: the file may be growing."""
    if irregular(RunFolder(path).jobs_file):
        return []
    try:
        lines = RunFolder(path).jobs_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return list(_parse(lines))


def newest(records: Iterable[JobRecord], kind: str = "train") -> JobRecord | None:
    return next((record for record in reversed(list(records)) if record.kind == kind), None)


def _parse(lines: Iterable[str]) -> Iterator[JobRecord]:
    for line in lines:
        try:
            yield JobRecord(**json.loads(line))
        except (ValueError, TypeError):
            continue
