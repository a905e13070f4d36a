"""The quickstart as the user guide sends it to a cluster: real weights, real text, two nodes with two processes each. Only shorter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import launch
from launch.run_state import state_of
from launch.slurm.records import jobs_of
from sft_dist.recipe.files import read_json
from sft_dist.run.folder import RunFolder
from tests.integration import harness
from tests.slurm.conftest import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.starts_first]
ROOT = Path(launch.__file__).parent.parent
SHORTER = ("data.limit=400", "train.epochs=1", "train.log_every=1")  # ten steps


def test_the_quickstart_trains_on_two_nodes_with_two_processes_each(idle_cluster: Cluster, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch", "submit", str(ROOT / "recipes/text-classification/quickstart.yaml"), *SHORTER,
         "resources.nodes=2", "resources.processes_per_node=2", "--cluster", "devcluster", "--no-eval",
         "--runs", str(tmp_path)],
        env={**idle_cluster.environment, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = RunFolder(harness.the_run(tmp_path))
    assert idle_cluster.wait_for_job(int(jobs_of(run.path)[0].job), 400) == ["COMPLETED"]
    state = state_of(run.path)
    assert (state.state, state.step, state.attempts) == ("finished", 10, 1), state.cause
    assert sorted(harness.losses(run.path)) == list(range(1, 11))
    (attempt,) = run.all_attempts()
    hosts = [(read_json(attempt.heartbeat_file(rank)) or {})["host"] for rank in range(4)]
    first, second = idle_cluster.nodes[:2]
    assert hosts == [first, first, second, second]
    assert harness.weights(run.path, 10)
