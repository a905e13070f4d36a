"""What runs request from a cluster, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.expand import Run
from launch.plan import Machine, Plan, plan_run
from launch.slurm.clusters import Cluster
from launch.slurm.probe import parse_time
from launch.slurm.resources import format_time
from sft_dist.recipe.errors import UserError
from tests.launch.conftest import ROWS, make_recipe
from tests.launch.slurm.test_clusters import make_cluster


def planned(cluster: Cluster, processes: int | None = None, **resources: object) -> Plan:
    run = Run("0123456789", make_recipe(resources={"processes_per_node": "auto", **resources}), {})
    folder = Path("/runs/demo/0123456789")
    return plan_run(run, Machine.node_of(cluster), ROWS, folder, "python", processes, cluster)


def refused(cluster: Cluster, **resources: object) -> str:
    with pytest.raises(UserError) as caught:
        planned(cluster, **resources)
    return str(caught.value)


def test_auto_is_one_process_a_gpu_of_the_cluster() -> None:
    plan = planned(make_cluster(), nodes=2)
    assert (plan.processes_per_node, plan.world_size, plan.device) == (4, 8, "gpu")
    assert plan.request is not None
    assert (plan.request.gpus, plan.request.cpus, plan.request.memory_mb) == (4, 64, 400 * 1024)


def test_a_run_on_part_of_a_node_asks_for_its_share_of_cpus_and_memory() -> None:
    plan = planned(make_cluster(), processes=1)
    assert plan.request is not None
    assert (plan.request.gpus, plan.request.cpus, plan.request.memory_mb) == (1, 16, 100 * 1024)
    assert plan.threads_per_process == 16


def test_what_the_recipe_says_is_asked_for() -> None:
    plan = planned(make_cluster(), time="90min", memory="64GiB", threads_per_process=2)
    assert plan.request is not None
    assert (plan.request.time_s, plan.request.memory_mb, plan.request.cpus) == (5400, 65536, 8)


def test_without_a_time_the_longest_is_taken() -> None:
    plan = planned(make_cluster())
    assert plan.request is not None
    assert plan.request.time_s == 86400


@pytest.mark.parametrize(
    ("resources", "path", "nearest"),
    [
        (
            {"processes_per_node": 8},
            "resources.processes_per_node",
            "resources.nodes: 2 with resources.processes_per_node: 4",
        ),
        (
            {"processes_per_node": 6},
            "resources.processes_per_node",
            "resources.nodes: 2 with resources.processes_per_node: 3",
        ),
        ({"nodes": 9}, "resources.nodes", "nearest that fits: 8"),
        ({"time": "25h"}, "resources.time", "nearest that fits: 1d"),
        ({"memory": "500GiB"}, "resources.memory", "nearest that fits: 400GiB"),
        ({"threads_per_process": 17}, "resources.threads_per_process", "nearest that fits: 16"),
        ({"time": "2min"}, "resources.time", "nearest that fits: 3min"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_that_does(
    resources: dict[str, object], path: str, nearest: str
) -> None:
    text = refused(make_cluster(), **resources)
    assert text.startswith(f"{path}: ")
    assert nearest in text


def test_several_things_that_do_not_fit_are_told_together() -> None:
    text = refused(make_cluster(), nodes=9, processes_per_node=8, threads_per_process=17, memory="500GiB", time="2d")
    for key in ("nodes", "processes_per_node", "threads_per_process", "memory", "time"):
        assert f"resources.{key}: " in text
    assert text.endswith("5 problems.")


@pytest.mark.parametrize(("time_s", "text"), [(59, "00:00:59"), (5400, "01:30:00"), (129600, "1-12:00:00")])
def test_times_are_written_as_sbatch_reads_them(time_s: int, text: str) -> None:
    assert format_time(time_s) == text
    assert parse_time(text) == time_s


def test_auto_goes_by_the_memory_of_a_clusters_gpus() -> None:
    assert Machine.node_of(make_cluster(gpu_memory="80GB")).gpu_memory == 80 * 10**9
    assert Machine.node_of(make_cluster()).gpu_memory is None
