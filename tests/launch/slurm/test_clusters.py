"""Cluster files, and recipes that meet them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.expand import Run
from launch.plan import Machine, Plan, plan_run
from launch.slurm.clusters import Cluster, find_cluster, known_clusters, load_cluster, read_cluster
from launch.slurm.probe import Probed, draft, gpu_memory_gb, gpus_of, parse_time
from launch.slurm.resources import format_time
from sft_dist.recipe.errors import UserError
from tests.launch.conftest import ROWS, make_recipe

GPU = {
    "name": "big",
    "gpus_per_node": 4,
    "cpus_per_node": 64,
    "memory_per_node": "400GiB",
    "max_time": "1d",
    "max_nodes": 8,
}


def make_cluster(**settings: object) -> Cluster:
    return Cluster.model_validate({**GPU, **settings})


def planned(cluster: Cluster, processes: int | None = None, **resources: object) -> Plan:
    run = Run("0123456789", make_recipe(resources={"processes_per_node": "auto", **resources}), {})
    folder = Path("/runs/demo/0123456789")
    return plan_run(run, Machine.node_of(cluster), ROWS, folder, "python", processes, cluster)


def refused(cluster: Cluster, **resources: object) -> str:
    with pytest.raises(UserError) as caught:
        planned(cluster, **resources)
    return str(caught.value)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["devcluster", "example"])
def test_the_shipped_clusters_load_by_name(name: str) -> None:
    assert load_cluster(name).name == name


def test_ones_own_cluster_hides_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = tmp_path / "sft-dist/clusters/example.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("cpus_per_node: 3\n")
    assert known_clusters()["example"] == own
    assert load_cluster("example").cpus_per_node == 3


def test_a_name_that_is_nearly_right_is_recognised() -> None:
    with pytest.raises(UserError, match="did you mean `devcluster`") as caught:
        find_cluster("devclustr")
    assert "local" in str(caught.value)


def test_every_mistake_is_named_at_once_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "partition: a b\n"
        "gpus: 4\n"
        "cpus_per_node: many\n"
        "max_time: 90\n"
        "environment: {A B: x, BASH_ENV: x, OK: true}\n"
        "container: {runtime: docker, image: x}\n"
        "venv: relative/path\n"
    )
    with pytest.raises(UserError) as caught:
        read_cluster(file)
    text = str(caught.value)
    for part in (
        ":1:12: partition: expected a name",
        ":2:1: gpus: unknown key `gpus` at the top of a cluster file",
        "did you mean `gpus_per_node`?",
        ":3:16: cpus_per_node: expected a whole number",
        ":4:11: max_time: expected a time with units",
        "environment.A B: expected an environment variable's name",
        "environment.BASH_ENV: expected an environment variable's name",
        "environment.OK: expected text, found true/false",
        "valid: apptainer, pyxis",
        ":7:7: venv: expected an absolute path",
    ):
        assert part in text


def test_further_sbatch_options_are_real_ones_and_not_those_this_program_writes(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        'cpus_per_node: 2\nsbatch: {partition: x, reservtion: y, mail-user: "a b", --nice: 3, exclusive: false, output: x}\n'
    )
    with pytest.raises(UserError) as caught:
        read_cluster(file)
    text = str(caught.value)
    assert "sbatch.partition: --partition is written by this program" in text
    assert "did you mean `reservation`?" in text
    assert "sbatch.mail-user: expected text without blanks" in text
    assert "write it without `--`" in text
    assert "sbatch.output: not an sbatch option that can be set here" in text
    assert "an option that is not wanted is left out" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"venv": "/v", "conda": "c"}, "not both"),
        ({"container": {"runtime": "pyxis", "image": "x"}, "venv": "/v"}, "brings its own Python"),
        ({"gpus_per_node": 0, "gpu_type": "h100"}, "needs gpus_per_node"),
        ({"gpus_per_node": 0, "gpu_type": None, "gpu_memory": "80GB"}, "`gpu_memory` needs gpus_per_node"),
        ({"nccl": {"PATH": "x"}}, "belongs to environment"),
        ({"environment": {"HF_TOKEN": "x"}}, "HF_TOKEN looks like a secret"),
        ({"environment": {"WANDB_API_KEY": "x"}}, "jobs inherit it"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    import yaml

    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**GPU, **settings}))
    with pytest.raises(UserError, match=message):
        read_cluster(file)


# ── recipe and cluster ──────────────────────────────────────────────────────────────────────────────────────────────
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


def test_all_mistakes_of_a_cluster_file_are_told_together(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("cpus_per_node: none\nsbatch: {partition: gpu, reservatoin: x}\n")
    with pytest.raises(UserError) as caught:
        read_cluster(file)
    assert [problem.path for problem in caught.value.problems] == [
        "cpus_per_node", "sbatch.partition", "sbatch.reservatoin"
    ]  # fmt: skip


@pytest.mark.parametrize(("time_s", "text"), [(59, "00:00:59"), (5400, "01:30:00"), (129600, "1-12:00:00")])
def test_times_are_written_as_sbatch_reads_them(time_s: int, text: str) -> None:
    assert format_time(time_s) == text
    assert parse_time(text) == time_s


def test_auto_goes_by_the_memory_of_a_clusters_gpus() -> None:
    assert Machine.node_of(make_cluster(gpu_memory="80GB")).gpu_memory == 80 * 10**9
    assert Machine.node_of(make_cluster()).gpu_memory is None


@pytest.mark.parametrize(
    ("names", "gb"),
    [
        ("a100_80gb ", 80),
        ("a100 intel,gpu_mem:40g,ib", 40),
        ("h100 gpumem_94gb", 94),
        ("h200 ib,gpu", 141),
        (" a40,amd", 48),
        ("a100 ib,skylake", None),  # 40 or 80
        ("v100 mem_384g", None),  # the node's own
        ("", None),
    ],
)
def test_memory_of_a_gpu_is_drafted_where_its_names_tell(names: str, gb: int | None) -> None:
    assert gpu_memory_gb(names) == gb


# ── probe ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("gres", "found"),
    [
        ("gpu:h100:4", ("h100", 4)),
        ("gpu:a100:8(S:0-1)", ("a100", 8)),
        ("gpu:2", ("", 2)),
        ("gpu:a100:2,gpu:v100:2", ("", 4)),
        ("(null)", ("", 0)),
        ("shard:8", ("", 0)),
    ],
)
def test_gpus_are_read_from_what_slurm_prints(gres: str, found: tuple[str, int]) -> None:
    assert gpus_of(gres) == found


def test_a_draft_is_a_valid_cluster_file(tmp_path: Path) -> None:
    nodes = (("gpu*", "16", "64000", "gpu:h100:4", "h100", "4:00:00"),) * 3 + (
        ("gpu*", "8", "32000+", "gpu:v100:2", "v100", "4:00:00"),
    )
    text = draft(
        Probed(
            "gpu",
            ("debug",),
            nodes,
            "PartitionName=gpu\n   MaxNodes=UNLIMITED MaxTime=04:00:00 MinNodes=0\n",
            "AccountingStorageType   = accounting_storage/none\nMaxArraySize            = 5001\nJobRequeue   = 0\n",
        )
    )
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    found = read_cluster(file)
    assert (found.gpus_per_node, found.gpu_type, found.cpus_per_node) == (4, "h100", 16)
    assert (found.max_nodes, found.max_time_s, found.max_array_size) == (4, 4 * 3600, 5001)
    assert not found.accounting
    assert not found.preemption.requeue
    assert "(3 of 4)" in text
