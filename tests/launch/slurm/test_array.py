"""The script of a job array."""

from __future__ import annotations

from pathlib import Path

from launch.slurm.array import array_script
from launch.slurm.clusters import load_cluster
from tests.launch.slurm.conftest import Bench, Golden, make_cluster, planned, run_script


def test_the_array_is_the_golden_one(golden: Golden) -> None:
    cluster = load_cluster("devcluster")
    asked = planned(cluster).request
    assert asked is not None
    golden("array.sbatch", array_script(asked, cluster, "demo", Path("/runs/demo/list.txt"), 20, 4))


def test_an_array_task_runs_the_run_folder_on_its_line(bench: Bench) -> None:
    bench.render(nodes=1)
    (bench.path / "list.txt").write_text(f"/somewhere/else\n{bench.run_folder}\n")
    cluster = make_cluster()
    asked = planned(cluster).request
    assert asked is not None
    script = bench.path / "array.sbatch"
    script.write_text(array_script(asked, cluster, "demo", bench.path / "list.txt", 2, None))
    assert run_script(bench, script, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="1") == 0
    assert "job 70_1" in bench.launcher_log()
    assert run_script(bench, script, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="2") == 1
