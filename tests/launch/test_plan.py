"""Plans: arithmetic, strategy, command, environment, warnings. Golden files hold every rendered command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch import render
from launch.expand import Run
from launch.plan import Machine, Plan, detect_machine, plan_run
from launch.row_counts import RowCounts
from sft_dist.recipe.errors import UserError
from tests.launch.conftest import ROWS, make_recipe

LAPTOP = Machine(gpus=0, cores=2)
SERVER = Machine(gpus=8, cores=64)
FOLDER = Path("/runs/demo/0123456789")


def planned(machine: Machine = LAPTOP, rows: RowCounts = ROWS, processes: int | None = None, **changes: Any) -> Plan:
    return plan_run(Run("0123456789", make_recipe(**changes), {}), machine, rows, FOLDER, "/venv/bin/python", processes)


def problem(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        planned(**changes)
    return caught.value.render()


@pytest.mark.parametrize(
    ("name", "machine", "processes", "strategy"),
    [
        ("plan_cpu_single", LAPTOP, 1, "auto"),
        ("plan_cpu_ddp", LAPTOP, 2, "auto"),
        ("plan_cpu_fsdp2", LAPTOP, 2, "fsdp2"),
        ("plan_gpu_single", SERVER, 1, "auto"),
        ("plan_gpu_ddp", SERVER, 8, "auto"),
        ("plan_gpu_fsdp2", SERVER, 8, {"name": "fsdp2", "offload": "cpu", "reshard_after_forward": False}),
    ],
)
def test_the_rendered_plan_is_the_golden_one(
    name: str, machine: Machine, processes: int, strategy: Any, golden: Callable[[str, str], None]
) -> None:
    plan = planned(machine, processes=processes, train={"strategy": strategy})
    golden(f"{name}.txt", render.describe_plans([(plan, "new")]) + "\n")


def test_the_batch_equation_multiplies_out() -> None:
    plan = planned(train={"global_batch": 256})
    assert render.batch_equation(plan) == "1 node x 2 processes x 32 micro-batch x 4 accumulation = 256"
    assert plan.world_size * plan.batch.micro_batch * plan.batch.accumulation == 256


def test_a_batch_that_does_not_divide_names_the_nearest_that_do() -> None:
    assert "30 or 33" in problem(train={"global_batch": 32}, resources={"processes_per_node": 3})


def test_auto_takes_every_gpu_or_two_processes_on_a_cpu() -> None:
    auto = {"resources": {"processes_per_node": "auto"}}
    assert planned(SERVER, **auto).processes_per_node == 8
    assert planned(LAPTOP, **auto).processes_per_node == 2
    assert planned(Machine(gpus=0, cores=1), **auto).processes_per_node == 1


def test_cores_are_shared_between_processes_unless_the_recipe_says_otherwise() -> None:
    assert planned(Machine(0, 8)).env["OMP_NUM_THREADS"] == "4"
    assert planned(Machine(0, 1)).env["OMP_NUM_THREADS"] == "1"
    plan = planned(Machine(0, 8), resources={"threads_per_process": 6})
    assert plan.env["OMP_NUM_THREADS"] == "6"
    assert "2 processes x 6 threads on 8 cores" in plan.warnings[0]


def test_several_nodes_need_a_cluster() -> None:
    assert "resources.nodes: 2 nodes need a cluster" in problem(resources={"nodes": 2})


def test_more_processes_than_gpus_are_refused() -> None:
    assert "this machine has 8" in problem(machine=SERVER, processes=9)


def test_a_strategy_that_does_not_fit_the_processes_is_refused() -> None:
    assert "train.strategy" in problem(train={"strategy": "single"})
    assert "train.strategy" in problem(train={"strategy": "ddp"}, processes=1)
    assert planned(train={"strategy": "ddp"}).reason == "the recipe says so"
    assert planned(train={"strategy": "fsdp2"}, processes=1).strategy["name"] == "fsdp2"


@pytest.mark.parametrize(
    ("train", "path"),
    [
        ({"precision": "fp16"}, "train.precision"),
        ({"precision": "fp8"}, "train.precision"),
        ({"strategy": {"name": "fsdp2", "offload": "cpu"}}, "train.strategy.offload"),
        (
            {"strategy": {"name": "zero3", "offload_optimizer": "nvme", "nvme_path": "/scratch"}},
            "train.strategy.offload_optimizer",
        ),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(train: dict[str, Any], path: str) -> None:
    assert problem(train=train).startswith(f"{path}: ")
    assert planned(SERVER, train=train)


def test_the_plan_tells_the_trainer_the_strategy_with_its_options() -> None:
    asked = {"name": "fsdp2", "offload": "cpu"}
    plan = planned(SERVER, train={"strategy": asked})
    assert plan.to_json()["strategy"] == {**asked, "reshard_after_forward": True}
    assert planned().to_json()["strategy"] == {"name": "ddp"}


def test_steps_are_unknown_with_a_reason_when_rows_are() -> None:
    plan = planned(rows=RowCounts(unknown="no connection to the hub"))
    assert plan.steps is None
    assert "no connection to the hub" in "".join(plan.warnings)
    assert "not known before the data is read" in render.describe_plan(plan, "new")


def test_deterministic_gpu_runs_set_the_cublas_workspace() -> None:
    assert planned(SERVER).env["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "CUBLAS_WORKSPACE_CONFIG" not in planned(SERVER, train={"deterministic": False}).env
    assert "CUBLAS_WORKSPACE_CONFIG" not in planned(LAPTOP).env


def test_what_will_surprise_is_said() -> None:
    assert "larger than the training set (10 examples)" in " ".join(
        planned(rows=RowCounts({"train": 10, "validation": 5})).warnings
    )
    assert "no validation examples" in " ".join(planned(rows=RowCounts({"train": 100})).warnings)
    assert "warm-up takes all" in " ".join(planned(train={"warmup": "5 epochs"}).warnings)
    assert "take effect on a cluster only" in " ".join(planned(resources={"time": "2h"}).warnings)
    assert planned().warnings == ()


def test_the_json_of_a_plan_is_complete() -> None:
    plan = planned()
    read = json.loads(json.dumps(plan.to_json()))
    assert read["batch"] == {"global_batch": 32, "world_size": 2, "micro_batch": 16, "accumulation": 1}
    assert read["steps"]["total"] == 20
    assert read["argv"] == list(plan.argv)
    assert read["folder"] == str(FOLDER)


def test_many_save_points_are_shortened_and_counted() -> None:
    assert render.describe_steps(range(10, 1010, 10)) == "10, 20, 30, ... 980, 990, 1000 (100 in all)"
    assert render.describe_steps([5, 10]) == "5, 10"


def test_many_runs_are_a_table_with_the_rest_counted() -> None:
    describe_plans = [(planned(), "new")] * 50
    text = render.describe_plans(describe_plans)
    assert "50 runs" in text
    assert "and 30 more" in text
    assert text.count("1x2x16x1=32") == 20


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 3), ("0,1", 2), ("", 0), ("-1", 0), ("1,-1,0", 1), ("GPU-a,GPU-b", 2)]
)
def test_gpus_are_counted_without_a_driver(monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int) -> None:
    entries = ["nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"]
    monkeypatch.setattr("os.listdir", lambda path: entries)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert detect_machine().gpus == count


@pytest.mark.parametrize(
    ("visible", "answer", "memory"),
    [
        ("0,1", "81559\n81559\n", 81559 * 2**20),
        ("0,1", "24576\n16384\n", 16384 * 2**20),
        ("MIG-1", "81559\n", None),
        ("0", "no devices", None),
    ],
)
def test_gpu_memory_is_that_of_the_smallest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str, answer: str, memory: int | None
) -> None:
    monkeypatch.setattr("os.listdir", lambda path: ["nvidia0", "nvidia1"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert detect_machine().gpu_memory == memory


def test_no_device_file_means_no_gpu_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.listdir", lambda path: ["null"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert detect_machine().gpus == 0
