"""The jobs of a run."""

from __future__ import annotations

from pathlib import Path

from launch.slurm.records import JobRecord, jobs_of, record_job
from sft_dist.run.folder import RunFolder


def test_a_record_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    record_job(RunFolder(tmp_path), JobRecord("7", 3, "here", "train", "2026"))
    with (tmp_path / "jobs.jsonl").open("a") as file:
        file.write('{"job": "8", "ta')
    assert [record.id for record in jobs_of(tmp_path)] == ["7_3"]
