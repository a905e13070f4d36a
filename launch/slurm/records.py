"""Which Slurm jobs belong to a run: one line each in the run's `jobs.jsonl`, appended when the job was submitted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sft_dist.recipe.files import append_line, irregular
from sft_dist.run.causes import reason_in
from sft_dist.run.folder import RunFolder

OUTPUT_BYTES = 64 * 1024  # of a job's output, from its end


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


def output_of(folder: Path, record: JobRecord) -> Path | None:
    """Returns where a job printed before its first attempt: beside the run, or for an array beside its submission."""
    name = f"slurm-{record.id}.out"
    files = [folder / name, *folder.parent.glob(f".submissions/*/{name}")]
    return next((file for file in files if file.is_file()), None)


def reason_of(folder: Path, record: JobRecord) -> str:
    """Returns the line of the job's output that names a reason, else ""."""
    file = output_of(folder, record)
    if file is None:
        return ""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - OUTPUT_BYTES))
        return reason_in(stream.read().decode(errors="replace"))


def _parse(lines: Iterable[str]) -> Iterator[JobRecord]:
    for line in lines:
        try:
            yield JobRecord(**json.loads(line))
        except (ValueError, TypeError):
            continue
