"""Which runs are missing, and in which jobs they are submitted."""

from __future__ import annotations

from pathlib import Path

from launch.slurm.divide import RunsByState, divide, plan_jobs
from launch.slurm.queue import Job
from launch.slurm.submit import submit
from tests.launch.slurm.conftest import CLUSTER, Slurm, prepared


def test_runs_that_ask_for_different_things_are_not_in_one_array(tmp_path: Path) -> None:
    one, two = prepared(tmp_path, 2), prepared(tmp_path, 2, nodes=2)
    missing = RunsByState(missing=[*one, *two])
    assert [len(job.runs) for job in plan_jobs([*one, *two], missing, {}, CLUSTER, evaluate=False)] == [2, 2]


def test_a_failed_run_with_no_job_left_is_missing_again(tmp_path: Path, slurm: Slurm) -> None:
    runs = prepared(tmp_path / "runs")
    submit(runs, CLUSTER, evaluate=False)
    assert divide(runs, {"101": Job("101", "COMPLETING")}).running == runs
    assert divide(runs, {}).missing == runs
