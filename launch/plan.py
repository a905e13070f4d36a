"""What will happen: a run and a machine go in, a frozen and printable Plan comes out. Pure but for `detect_machine`."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from launch.expand import Run
from launch.rows import Rows
from launch.strategies import STRATEGIES, choose
from launch.strategies.base import Launch, Shape
from sft_dist.recipe.arithmetic import Batch, Steps, batch_of, steps_of
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe

# What a run writes, in the order it appears. The names are RunFolder's.
WRITTEN = (
    "recipe.json",
    "plan.json",
    "run.sh",
    "source/sft_dist/",
    "attempts/001/",
    "metrics.jsonl",
    "checkpoints/step-*/",
)


@dataclass(frozen=True)
class Machine:
    """What there is to run on."""

    gpus: int
    cores: int


@dataclass(frozen=True)
class Plan:
    """One run, as it will be started. `argv` and `env` are complete; nothing is added but the attempt's number."""

    id: str
    name: str
    point: dict[str, Any]
    folder: Path
    nodes: int
    processes_per_node: int
    threads_per_process: int
    device: str  # "gpu" | "cpu"
    batch: Batch
    steps: Steps | None
    rows: Rows
    strategy: str
    why: str
    argv: tuple[str, ...]
    env: dict[str, str]
    files: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def detect_machine() -> Machine:
    """Counts GPUs without a driver library: CUDA_VISIBLE_DEVICES, else the device files."""
    try:
        devices = sum(1 for entry in os.listdir("/dev") if re.fullmatch(r"nvidia[0-9]+", entry))
    except OSError:
        devices = 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices and visible is not None:
        chosen = [part for part in visible.split(",") if part.strip()]
        # CUDA stops reading at the first -1; a list may name MIG slices, so it can be longer than the device files.
        devices = next((place for place, part in enumerate(chosen) if part.strip() == "-1"), len(chosen))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(gpus=devices, cores=cores)


def plan_run(run: Run, machine: Machine, rows: Rows, folder: Path, python: str, processes: int | None = None) -> Plan:
    """`processes` (from the command line) replaces resources.processes_per_node. Raises UserError with key paths."""
    recipe = run.recipe
    shape = _shape(machine, recipe.resources.nodes, processes or recipe.resources.processes_per_node)
    strategy, why, launch = _launch(recipe.train.strategy, shape)
    steps = _steps(recipe, rows.train) if rows.train else None
    threads = recipe.resources.threads_per_process or max(1, machine.cores // shape.processes_per_node)
    where = str(folder)
    env = {
        **launch.env,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": f"{where}/source",
    }
    if recipe.train.deterministic and shape.on_gpu:
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return Plan(
        id=run.id,
        name=recipe.name,
        point=run.point,
        folder=folder,
        nodes=shape.nodes,
        processes_per_node=shape.processes_per_node,
        threads_per_process=threads,
        device="gpu" if shape.on_gpu else "cpu",
        batch=batch_of(recipe, shape.world_size),
        steps=steps,
        rows=rows,
        strategy=strategy,
        why=why,
        argv=(python, "-m", "accelerate.commands.launch", *launch.flags, "-m", "sft_dist.train", where),
        env=env,
        files=WRITTEN,
        warnings=tuple(_warnings(recipe, machine, shape, threads, rows, steps)),
    )


# Thousands of runs of one matrix mostly share what follows, so it is worked out once for each distinct question.
@lru_cache(maxsize=1024)
def _shape(machine: Machine, nodes: int, wanted: int | str) -> Shape:
    if nodes > 1:
        raise UserError(
            Problem(
                f"{nodes} nodes need a cluster, and this is one machine",
                path="resources.nodes",
                found=str(nodes),
                hint="set resources.nodes=1 to run here",
            )
        )
    # auto: two on a CPU, so that what is debugged here is distributed too.
    processes = (machine.gpus or min(2, machine.cores)) if isinstance(wanted, str) else wanted
    if machine.gpus and processes > machine.gpus:
        raise UserError(
            Problem(
                f"{processes} processes need {processes} GPUs, and this machine has {machine.gpus}",
                path="resources.processes_per_node",
                found=str(processes),
                valid=("auto", *(str(count) for count in range(1, machine.gpus + 1))),
            )
        )
    return Shape(nodes, processes, on_gpu=machine.gpus > 0)


@lru_cache(maxsize=1024)
def _launch(asked: str, shape: Shape) -> tuple[str, str, Launch]:
    strategy, why = choose(asked, shape)
    return strategy, why, STRATEGIES[strategy](shape)


def _steps(recipe: Recipe, rows: int) -> Steps:
    train = recipe.train
    key = (train.epochs, train.steps, train.global_batch, train.warmup, train.save_every, train.eval_every, rows)
    if key not in _KNOWN_STEPS:
        _KNOWN_STEPS[key] = steps_of(recipe, rows)
    return _KNOWN_STEPS[key]


_KNOWN_STEPS: dict[tuple[object, ...], Steps] = {}


def _warnings(
    recipe: Recipe, machine: Machine, shape: Shape, threads: int, rows: Rows, steps: Steps | None
) -> list[str]:
    found = []
    if not shape.on_gpu and shape.processes_per_node * threads > machine.cores:
        found.append(
            f"{shape.processes_per_node} processes x {threads} threads on {machine.cores} cores: "
            "more threads than cores is several times slower"
        )
    if rows.unknown:
        found.append(f"the number of steps is not known before the data is read: {rows.unknown}")
    if rows.train is not None and rows.train < recipe.train.global_batch:
        found.append(f"one batch ({recipe.train.global_batch}) is more than all {rows.train} training examples")
    if rows.splits and not rows.splits.get("validation"):
        found.append("no validation examples: the last checkpoint will be chosen")
    if steps and steps.warmup >= steps.total:
        found.append(f"warm-up takes all {steps.total} steps: the full learning rate is never reached")
    if shape.on_gpu and shape.processes_per_node < machine.gpus:
        found.append(f"{machine.gpus - shape.processes_per_node} of {machine.gpus} GPUs stay idle")
    idle = [f"resources.{key}" for key in ("time", "memory") if getattr(recipe.resources, key) is not None]
    if idle:
        found.append(f"{' and '.join(idle)} only count on a cluster")
    return found
