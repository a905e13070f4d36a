"""The evaluation on a real Slurm: an array of functions after an array of training, and one job that chooses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm.records import JobRecord, jobs_of, record_job
from sft_dist.recipe.files import read_json
from sft_dist.run.folder import RunFolder
from tests.slurm.conftest import Cluster
from tests.slurm.test_submit_real import ROOT, Workplace, workplace  # noqa: F401

pytestmark = pytest.mark.slurm

# On the nodes: the first start of each task waits to be told that its time is over, the second one ends.
ERRAND = """\
import time

def work(path):
    starts = len(list(path.glob("start-*")))
    (path / f"start-{starts}").touch()
    if starts == 0 and path.name == "slow":
        time.sleep(120)
    (path / "done").touch()
"""
SEND = """\
import sys
from pathlib import Path
from launch.slurm.clusters import load_cluster
from launch.slurm.functions import Work, send
from launch.slurm.resources import request_resources
from sft_dist.recipe.schema import Resources

here = Path.cwd()
cluster = load_cluster("./here.yaml")
paths = [here / name for name in sys.argv[1:]]
python = f"{cluster.venv}/bin/python"
work = Work("errands", "sft_dist.errand:work", paths, here / "checkout", python, {})
print(send(work, request_resources(Resources(), cluster, 1), cluster, here / "it's 100 jobs"))
"""


def test_a_function_that_is_warned_is_queued_again_and_ends_where_it_left_off(workplace: Workplace) -> None:  # noqa: F811
    (workplace.path / "checkout/sft_dist/errand.py").write_text(ERRAND)
    folders = [workplace.path / name for name in ("quick", "slow")]
    for folder in folders:
        folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SEND, "quick", "slow"], cwd=workplace.path, capture_output=True, text=True, check=True,
        env={**workplace.cluster.environment, **workplace.env},
    )  # fmt: skip
    job = int(done.stdout)
    slow = workplace.path / "slow"
    workplace.cluster.wait_until((slow / "start-0").exists, 60, "the slow task's start")
    workplace.cluster.run("scancel", "--signal=USR2", f"{job}_1")
    workplace.cluster.wait_until((slow / "done").exists, 60, "the slow task's second start")
    workplace.cluster.wait_for_job(job)
    assert [sorted(file.name for file in folder.iterdir()) for folder in folders] == [
        ["done", "start-0"],
        ["done", "start-0", "start-1"],
    ]


def test_a_job_that_waits_for_one_that_failed_is_explained(workplace: Workplace) -> None:  # noqa: F811
    (run,) = workplace.submit()
    failed = workplace.cluster.run_sbatch("exit 1")
    workplace.wait_for([run])
    workplace.cluster.wait_for_job(failed)
    for path in run.all_attempts():  # as if it had never run
        path.outcome_file.unlink()
    waiting = workplace.cluster.run_sbatch("true", f"--dependency=afterok:{failed}")
    record_job(run, JobRecord(str(waiting), None, "here", "train", ""))
    record_job(run, JobRecord(str(waiting), None, "here", "eval", ""))
    told: list[str] = []

    def explained() -> bool:
        told[:] = workplace.sft_dist("status").splitlines()
        return any("will never start: the job it waits for has failed; cancel it" in line for line in told)

    workplace.cluster.wait_until(explained, 60, "an explanation")
    assert any(line.startswith(f"evaluation, job {waiting}: pending, will never start") for line in told)
    assert any(f"afterok:{failed}(failed)" in line for line in told)


@pytest.mark.slow
@pytest.mark.starts_first
def test_a_sweep_is_trained_scored_and_evaluated_though_one_run_was_killed(
    idle_cluster: Cluster, tmp_path: Path, tiny_model: Path, reviews: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(
        f"task: text-classification\nmodel: {{path: {tiny_model}}}\n"
        f"data: {{source: {reviews}, max_length: 32}}\ntuning: full\n"
        "train: {lr: 1.0e-3, global_batch: 16, save_every: 1 steps, keep_last: 20}\nresources: {processes_per_node: 1}\n"
        "matrix: {train.steps: [5, 10, 100000]}\n"
    )
    env = {**idle_cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def sft_dist(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    sft_dist("submit", "tiny.yaml", "--no-check", "--cluster", "devcluster", "--no-eval")
    plans = json.loads(sft_dist("plan", "tiny.yaml", "--cluster", "devcluster", "--json"))
    runs = [RunFolder(Path(plan["folder"])) for plan in plans]
    train = jobs_of(runs[0].path)[0].job
    sent = sft_dist("submit", "tiny.yaml", "--no-check", "--cluster", "devcluster")  # what is running is evaluated, too
    assert "0 to submit" in sent
    score, evaluation = (jobs_of(runs[2].path)[place] for place in (1, 2))
    assert [score.kind, score.task, evaluation.kind, evaluation.task] == ["score", 2, "eval", None]
    waits = f"pending, waits for another job (afterany:{train}_*(unfulfilled))"
    told = sft_dist("status")
    assert f"evaluation, job {score.job}: 3 {waits}" in told
    assert f"evaluation, job {evaluation.job}: pending" in told
    assert "0 to submit; skipped" in sft_dist("submit", "tiny.yaml", "--no-check", "--cluster", "devcluster")
    assert len(jobs_of(runs[2].path)) == 3

    idle_cluster.wait_until(lambda: len([*runs[2].checkpoints.glob("step-*")]) >= 5, 300, "checkpoints of the long run")
    idle_cluster.run("scancel", "--full", "--signal=KILL", f"{train}_2")
    idle_cluster.wait_for_job(int(train), 120)
    assert [idle_cluster.wait_for_job(int(one.job), 180)[-1] for one in (score, evaluation)] == ["COMPLETED"] * 2
    board = read_json(tmp_path / "runs/tiny/leaderboard.json")
    assert board is not None
    assert {row["run"] for row in board["rows"]} == {run.id for run in runs}
    assert len([file for run in runs for file in run.evaluation.glob("*.test.json")]) == 1
    assert board["winner"]["test"]["accuracy"] is not None
    logs = [next(tmp_path.glob(f"runs/tiny/.submissions/*/eval/{score.job}_{task}_0_log.out")) for task in range(3)]
    assert [f"{run.id}  checkpoint 1/" in log.read_text() for run, log in zip(runs, logs, strict=True)] == [True] * 3

    num_checkpoints = len(board["rows"])
    assert num_checkpoints >= 20
    for run in runs:
        shutil.rmtree(run.evaluation)
    sent = sft_dist("eval", "tiny.yaml", "--cluster", "devcluster", "--processes", "4")
    assert "an array of 4 tasks" in sent
    evaluation = jobs_of(runs[0].path)[-1]
    assert idle_cluster.wait_for_job(int(evaluation.job), 300)[-1] == "COMPLETED"
    again = read_json(tmp_path / "runs/tiny/leaderboard.json")
    assert again is not None
    for evaluations in (board["test_evaluations"], again["test_evaluations"]):
        for entry in evaluations:
            del entry["time"]
    assert again == board
