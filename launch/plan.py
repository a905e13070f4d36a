"""Plans a run: a run and a machine (or a cluster) go in, a frozen and printable Plan comes out. Pure except for
`detect_machine`."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.expand import Run
from launch.row_counts import RowCounts
from launch.slurm.resources import Request, request_resources
from launch.strategy import Launch, Shape, StrategyChoice, accelerate_launch, choose
from sft_dist.recipe.arithmetic import Batch, Steps, batch_of, steps_of
from sft_dist.recipe.errors import Problem, UserError, collected
from sft_dist.recipe.machine import is_installed, needs_gpu
from sft_dist.recipe.model_folder import length_warnings
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.strategies import Strategy
from sft_dist.recipe.units import bytes_of

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster

# Files a run writes, in this order. The names are RunFolder's.
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
    """One machine, or one node of a cluster."""

    gpus: int
    cores: int
    cluster: str = ""  # empty: this machine
    max_nodes: int = 1
    gpu_memory: int | None = None  # bytes of one GPU; None: not known
    memory: int | None = None  # bytes of main memory; None: not known

    @classmethod
    def node_of(cls, cluster: Cluster) -> Machine:
        max_nodes = cluster.max_nodes or 100_000
        gpu_memory = bytes_of(cluster.gpu_memory) if cluster.gpu_memory else None
        memory = cluster.memory_mb * 2**20 if cluster.memory_mb else None
        return cls(cluster.gpus_per_node, cluster.cpus_per_node, cluster.name, max_nodes, gpu_memory, memory)

    @property
    def noun(self) -> str:
        return f"a node of {self.cluster}" if self.cluster else "this machine"


@dataclass(frozen=True)
class Plan:
    """One run, as it will be started. `argv` and `env` are complete; only the attempt's number is added."""

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
    rows: RowCounts
    strategy: dict[str, Any]  # name and options; the trainer reads it where the recipe says `auto`
    reason: str  # for the strategy
    argv: tuple[str, ...]
    env: dict[str, str]
    files: tuple[str, ...]
    warnings: tuple[str, ...]
    request: Request | None = None  # of resources, to Slurm
    base: dict[str, Any] | None = None  # name of the recipe's parent, and key path -> its value there and in the recipe

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node

    def to_json(self) -> dict[str, Any]:
        # Not `asdict`: it copies deeply, which is slow for a thousand runs. `reason` is `why` in the file.
        return {
            **{"why" if name == "reason" else name: value for name, value in vars(self).items()},
            "folder": str(self.folder),
            "batch": vars(self.batch),
            "steps": vars(self.steps) if self.steps else None,
            "rows": vars(self.rows),
            "request": vars(self.request) if self.request else None,
        }


def detect_machine() -> Machine:
    """Describes this machine. GPUs are counted without a driver library: CUDA_VISIBLE_DEVICES, else the device files."""
    try:
        devices = sum(1 for entry in os.listdir("/dev") if re.fullmatch(r"nvidia[0-9]+", entry))
    except OSError:
        devices = 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices and visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        # CUDA stops reading at the first -1; a list may name MIG slices, so it can be longer than the device files.
        devices = names.index("-1") if "-1" in names else len(names)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(devices, cores, gpu_memory=_gpu_memory(visible or "") if devices else None, memory=memory)


def _gpu_memory(visible: str) -> int | None:
    """Returns the bytes of the smallest GPU, from nvidia-smi. None when it fails, and for slices of GPUs."""
    if "MIG-" in visible:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return min(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def plan_run(
    run: Run,
    machine: Machine,
    rows: RowCounts,
    folder: Path,
    python: str,
    processes: int | None = None,
    cluster: Cluster | None = None,
) -> Plan:
    """Plans one run. `processes` (from the command line) replaces resources.processes_per_node. With a cluster, `machine` is
    one node of it. Raises UserError with key paths."""
    recipe = run.recipe
    num_processes = _num_processes(machine, processes or recipe.resources.processes_per_node)
    problems: list[Problem] = []
    request: Request | None = None
    with collected(problems):
        shape = _shape(machine, recipe.resources.nodes, num_processes)
        problems += () if shape.on_gpu else needs_gpu(recipe)
        choice, launch = _strategy(recipe, shape, machine, python)
        batch = batch_of(recipe, shape.world_size)
    with collected(problems):
        request = (
            request_resources(recipe.resources, cluster, min(num_processes, machine.gpus or num_processes))
            if cluster
            else None
        )
    if problems:
        raise UserError(problems)
    steps = _steps(recipe, rows.train) if rows.train or recipe.data.streaming else None
    cores = request.cpus if request else machine.cores
    threads = recipe.resources.threads_per_process or max(1, cores // shape.processes_per_node)
    env = {
        **launch.env,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": f"{folder}/source",
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
        batch=batch,
        steps=steps,
        rows=rows,
        strategy=choice.strategy,
        reason=choice.reason,
        argv=(python, "-m", "accelerate.commands.launch", *launch.flags, "-m", "sft_dist.train", str(folder)),
        env=env,
        files=tuple("job.sbatch" if cluster and file == "run.sh" else file for file in WRITTEN),
        warnings=(*choice.warnings, *_warnings(recipe, machine, shape, threads, rows, steps)),
        request=request,
    )


def _nearest_nodes(processes: int, machine: Machine) -> str:
    """Suggests as many processes on more nodes, if the cluster has them."""
    if not machine.cluster:
        return ""
    nodes = min(math.ceil(processes / machine.gpus), machine.max_nodes)
    per_node = min(machine.gpus, math.ceil(processes / nodes))
    return f"nearest that fits: resources.nodes: {nodes} with resources.processes_per_node: {per_node}"


def _num_processes(machine: Machine, setting: int | str) -> int:
    """Returns the number of processes per node. auto: one per GPU; two on a CPU, so that debugging there is distributed, too."""
    return setting if isinstance(setting, int) else machine.gpus or min(2, machine.cores)


# Thousands of runs of one matrix mostly share the answers below, so each is computed once for each distinct question.
@lru_cache(maxsize=1024)
def _shape(machine: Machine, nodes: int, processes: int) -> Shape:
    problems = []
    if nodes > machine.max_nodes:
        if machine.cluster:
            message = f"jobs on {machine.cluster} have at most {machine.max_nodes} nodes"
            hint = f"nearest that fits: {machine.max_nodes}"
        else:
            message = f"{nodes} nodes need a cluster, but this is one machine"
            hint = "set resources.nodes=1 to run here, or submit it with --cluster"
        problems.append(Problem(message, path="resources.nodes", value=str(nodes), hint=hint))
    if machine.gpus and processes > machine.gpus:
        problems.append(
            Problem(
                f"{processes} processes need {processes} GPUs, but {machine.noun} has {machine.gpus}",
                path="resources.processes_per_node",
                value=str(processes),
                valid=("auto", *(str(count) for count in range(1, machine.gpus + 1))),
                hint=_nearest_nodes(nodes * processes, machine),
            )
        )
    if problems:
        raise UserError(problems)
    return Shape(nodes, processes, on_gpu=machine.gpus > 0)


def _strategy(recipe: Recipe, shape: Shape, machine: Machine, python: str) -> tuple[StrategyChoice, Launch]:
    train = recipe.train
    key: tuple[object, ...] = (train.strategy, shape)
    if shape.on_gpu:  # settings that the memory estimate depends on
        tuning = recipe.tuning.model_dump_json()
        optimizer = train.optimizer.model_dump_json()
        options = (train.precision, train.gradient_checkpointing, train.compile)
        key += (recipe.model.path, recipe.model.revision, tuning, optimizer, *options, machine, python)
    if key not in _STRATEGY_CACHE:
        choice = choose(recipe, shape, machine.gpu_memory, partial(_has_packages, python), machine.memory)
        _STRATEGY_CACHE[key] = choice, accelerate_launch(choice.strategy["name"], shape)
    return _STRATEGY_CACHE[key]


def _has_packages(python: str, row: Strategy) -> bool:
    """Whether the strategy's packages are installed; another Python's packages are not known here."""
    return not row.packages or (python == sys.executable and all(is_installed(module) for module, _ in row.packages))


_STRATEGY_CACHE: dict[tuple[object, ...], tuple[StrategyChoice, Launch]] = {}


def _steps(recipe: Recipe, rows: int | None) -> Steps:
    train = recipe.train
    periods = (train.warmup, train.save_every, train.eval_every, train.keep_every)
    key = (train.epochs, train.steps, train.global_batch, *periods, rows)
    if key not in _STEPS_CACHE:
        _STEPS_CACHE[key] = steps_of(recipe, rows)
    return _STEPS_CACHE[key]


_STEPS_CACHE: dict[tuple[object, ...], Steps] = {}


def _warnings(
    recipe: Recipe, machine: Machine, shape: Shape, threads: int, rows: RowCounts, steps: Steps | None
) -> list[str]:
    warnings = []
    if not shape.on_gpu and shape.processes_per_node * threads > machine.cores:
        warnings.append(
            f"{shape.processes_per_node} processes x {threads} threads on {machine.cores} cores: "
            "with more threads than cores, training is several times slower"
        )
    if rows.unknown:
        warnings.append(f"the number of steps is not known before the data is read: {rows.unknown}")
    if rows.train is not None and rows.train < recipe.train.global_batch:
        warnings.append(
            f"the global batch ({recipe.train.global_batch}) is larger than the training set ({rows.train} examples)"
        )
    if rows.splits and not rows.splits.get("validation"):
        warnings.append("no validation examples: the last checkpoint will be chosen")
    if steps and steps.warmup >= steps.total:
        warnings.append(f"warm-up takes all {steps.total} steps: the full learning rate is never reached")
    if shape.on_gpu and shape.processes_per_node < machine.gpus and not machine.cluster:
        warnings.append(f"{machine.gpus - shape.processes_per_node} of {machine.gpus} GPUs stay idle")
    warnings += length_warnings(recipe)
    idle = [f"resources.{key}" for key in ("time", "memory") if getattr(recipe.resources, key) is not None]
    if idle and not machine.cluster:
        warnings.append(f"{' and '.join(idle)} take effect on a cluster only")
    return warnings
