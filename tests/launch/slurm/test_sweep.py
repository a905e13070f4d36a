"""`sft-dist eval --cluster`, against stand-ins for sbatch and squeue that note what they were asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.slurm.records import jobs_of
from launch.slurm.submit import SubmissionFolder
from launch.slurm.sweep import SentSweep, describe, send_sweep
from sft_dist.recipe.files import read_json, write_json
from sft_dist.run.folder import RunFolder
from tests.launch.slurm.conftest import CLUSTER, Slurm, prepared
from tests.launch.slurm.test_submit import script_of_call


def saved(root: Path, num_runs: int, steps: range) -> list:
    runs = prepared(root, num_runs)
    for run in runs:
        run.plan.folder.mkdir(parents=True)
        for step in steps:
            RunFolder(run.plan.folder).checkpoint(step).mkdir(parents=True)
    return runs


def test_all_checkpoints_are_divided_among_the_tasks_of_one_array(tmp_path: Path, slurm: Slurm) -> None:
    runs = saved(tmp_path / "runs", 2, range(1, 11))
    scored = RunFolder(runs[0].plan.folder).evaluation
    scored.mkdir()
    write_json(scored / "step-00000001.validation.json", {})
    sent = send_sweep(runs, CLUSTER, tmp_path / "runs/board", max_tasks=100)
    score, evaluation = slurm.calls("sbatch")
    assert sent == SentSweep("101", "102", 19)
    assert "#SBATCH --array=0-18%19\n" in script_of_call(score)
    assert "#SBATCH --dependency=afterany:101\n" in script_of_call(evaluation)
    shares = [read_json(file) for file in tmp_path.glob("runs/*/.submissions/*/share-*.json")]
    assert sorted(share["index"] for share in shares) == list(range(19))
    assert {(share["count"], *share["runs"]) for share in shares} == {(19, *(str(run.plan.folder) for run in runs))}
    assert [record.id for record in jobs_of(runs[1].plan.folder)] == [
        *(f"101_{task}" for task in range(1, 19, 2)),
        "102",
    ]


def test_no_array_is_longer_than_the_cluster_allows_and_one_checkpoint_needs_none(tmp_path: Path, slurm: Slurm) -> None:
    small = CLUSTER.model_copy(update={"max_array_size": 3})
    assert send_sweep(saved(tmp_path / "a", 1, range(1, 11)), small, tmp_path).num_tasks == 3
    assert send_sweep(saved(tmp_path / "c", 1, range(1, 11)), CLUSTER, tmp_path, max_tasks=4).num_tasks == 4
    assert send_sweep(saved(tmp_path / "b", 1, range(1, 2)), CLUSTER, tmp_path).scoring == ""


def test_the_job_that_chooses_averages_checkpoints(tmp_path: Path, slurm: Slurm) -> None:
    send_sweep(saved(tmp_path / "runs", 1, [1, 2]), CLUSTER, tmp_path, averages=["last:2"])
    (order,) = tmp_path.glob("runs/*/.submissions/*/eval.json")
    assert (read_json(order) or {})["average"] == ["last:2"]


def test_what_is_in_the_queue_is_not_sent_again(tmp_path: Path, slurm: Slurm) -> None:
    runs = saved(tmp_path / "runs", 2, range(1, 4))
    first = send_sweep(runs, CLUSTER, tmp_path)
    slurm.show("101_0|RUNNING|x", "102|PENDING|x")
    again = send_sweep(runs, CLUSTER, tmp_path)
    assert (again.evaluation, again.is_new, len(slurm.calls("sbatch"))) == (first.evaluation, False, 2)
    assert describe(again, CLUSTER).startswith("job 102 already evaluates these runs")


def test_a_sweep_that_died_after_sbatch_is_not_repeated(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = saved(tmp_path / "runs", 1, range(1, 2))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SubmissionFolder, "record", die)
        with pytest.raises(KeyboardInterrupt):
            send_sweep(runs, CLUSTER, tmp_path / "runs/board")
    (comment,) = re.findall(r"--comment=(\S+)", script_of_call(slurm.calls("sbatch")[0]))
    slurm.show(f"101|PENDING|{comment}")
    assert send_sweep(runs, CLUSTER, tmp_path / "runs/board") == SentSweep("", "101", is_new=False)
    assert len(slurm.calls("sbatch")) == 1
