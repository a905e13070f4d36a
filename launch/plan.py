"""What will happen: a run and a machine (or a cluster) go in, a frozen and printable Plan comes out. Pure but for
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
from launch.row_counts import Rows
from launch.slurm.resources import Request, request_resources
from launch.strategy import Launch, Shape, StrategyChoice, accelerate_launch, choose
from sft_dist.recipe.arithmetic import Batch, Steps, batch_of, steps_of
from sft_dist.recipe.errors import Problem, UserError, collected
from sft_dist.recipe.machine import is_installed, needs_gpu
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.strategies import Strategy
from sft_dist.recipe.units import bytes_of

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster

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
    cluster: str = ""  # whose nodes are like this; empty: this machine
    most_nodes: int = 1
    gpu_memory: int | None = None  # bytes of one GPU; None: not known
    memory: int | None = None  # bytes of its own; None: not known

    @classmethod
    def node_of(cls, cluster: Cluster) -> Machine:
        most = cluster.max_nodes or 100_000
        memory = bytes_of(cluster.gpu_memory) if cluster.gpu_memory else None
        own = cluster.memory_mb * 2**20 if cluster.memory_mb else None
        return cls(cluster.gpus_per_node, cluster.cpus_per_node, cluster.name, most, memory, own)

    @property
    def noun(self) -> str:
        return f"a node of {self.cluster}" if self.cluster else "this machine"


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
    strategy: dict[str, Any]  # name and options; the trainer reads it where the recipe says `auto`
    why: str
    argv: tuple[str, ...]
    env: dict[str, str]
    files: tuple[str, ...]
    warnings: tuple[str, ...]
    request: Request | None = None  # what Slurm is asked for

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node

    def to_json(self) -> dict[str, Any]:
        # Not `asdict` as a whole: it copies deeply, which a thousand runs notice.
        return {
            **vars(self),
            "folder": str(self.folder),
            "batch": vars(self.batch),
            "steps": vars(self.steps) if self.steps else None,
            "rows": vars(self.rows),
            "request": vars(self.request) if self.request else None,
        }


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
    own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(gpus=devices, cores=cores, gpu_memory=_gpu_memory(visible or "") if devices else None, memory=own)


def _gpu_memory(visible: str) -> int | None:
    """Bytes of the smallest GPU, from the driver's own program. None when it does not answer, and for slices of GPUs."""
    if "MIG-" in visible:
        return None
    question = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(question, capture_output=True, text=True, timeout=10, check=True)
        return min(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def plan_run(
    run: Run,
    machine: Machine,
    rows: Rows,
    folder: Path,
    python: str,
    processes: int | None = None,
    cluster: Cluster | None = None,
) -> Plan:
    """`processes` (from the command line) replaces resources.processes_per_node. With a cluster, `machine` is one node
    of it. Raises UserError with key paths."""
    recipe = run.recipe
    wanted = _processes(machine, processes or recipe.resources.processes_per_node)
    problems: list[Problem] = []
    asked: Request | None = None
    with collected(problems):
        shape = _shape(machine, recipe.resources.nodes, wanted)
        problems += () if shape.on_gpu else needs_gpu(recipe)
        choice, launch = _strategy(recipe, shape, machine, python)
        batch = batch_of(recipe, shape.world_size)
    with collected(problems):
        asked = request_resources(recipe.resources, cluster, min(wanted, machine.gpus or wanted)) if cluster else None
    if problems:
        raise UserError(problems)
    steps = _steps(recipe, rows.train) if rows.train or recipe.data.streaming else None
    cores = asked.cpus if asked else machine.cores
    threads = recipe.resources.threads_per_process or max(1, cores // shape.processes_per_node)
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
        batch=batch,
        steps=steps,
        rows=rows,
        strategy=choice.strategy,
        why=choice.reason,
        argv=(python, "-m", "accelerate.commands.launch", *launch.flags, "-m", "sft_dist.train", where),
        env=env,
        files=tuple("job.sbatch" if cluster and file == "run.sh" else file for file in WRITTEN),
        warnings=(*choice.warnings, *_warnings(recipe, machine, shape, threads, rows, steps)),
        request=asked,
    )


def _nearest_nodes(processes: int, machine: Machine) -> str:
    """As many processes on more nodes, if the cluster has them."""
    if not machine.cluster:
        return ""
    nodes = min(math.ceil(processes / machine.gpus), machine.most_nodes)
    each = min(machine.gpus, math.ceil(processes / nodes))
    return f"nearest that fits: resources.nodes: {nodes} with resources.processes_per_node: {each}"


def _processes(machine: Machine, wanted: int | str) -> int:
    """auto: one a GPU; two on a CPU, so that what is debugged here is distributed too."""
    return wanted if isinstance(wanted, int) else machine.gpus or min(2, machine.cores)


# Thousands of runs of one matrix mostly share what follows, so it is worked out once for each distinct question.
@lru_cache(maxsize=1024)
def _shape(machine: Machine, nodes: int, processes: int) -> Shape:
    problems = []
    if nodes > machine.most_nodes:
        here = not machine.cluster
        problems.append(
            Problem(
                f"{nodes} nodes need a cluster, and this is one machine"
                if here
                else f"jobs on {machine.cluster} have at most {machine.most_nodes} nodes",
                path="resources.nodes",
                value=str(nodes),
                hint="set resources.nodes=1 to run here, or send it to one with --cluster"
                if here
                else f"nearest that fits: {machine.most_nodes}",
            )
        )
    if machine.gpus and processes > machine.gpus:
        problems.append(
            Problem(
                f"{processes} processes need {processes} GPUs, and {machine.noun} has {machine.gpus}",
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
    if shape.on_gpu:  # what an estimate of memory depends on
        tuning = recipe.tuning.model_dump_json()
        optimizer = train.optimizer.model_dump_json()
        switches = (train.precision, train.gradient_checkpointing, train.compile)
        key += (recipe.model.path, tuning, optimizer, *switches, machine, python)
    if key not in _KNOWN_STRATEGIES:
        choice = choose(recipe, shape, machine.gpu_memory, partial(_has_packages, python), machine.memory)
        _KNOWN_STRATEGIES[key] = choice, accelerate_launch(choice.strategy["name"], shape)
    return _KNOWN_STRATEGIES[key]


def _has_packages(python: str, row: Strategy) -> bool:
    """Another Python's packages are not known here."""
    return not row.packages or (python == sys.executable and all(is_installed(module) for module, _ in row.packages))


_KNOWN_STRATEGIES: dict[tuple[object, ...], tuple[StrategyChoice, Launch]] = {}


def _steps(recipe: Recipe, rows: int | None) -> Steps:
    train = recipe.train
    periods = (train.warmup, train.save_every, train.eval_every, train.keep_every)
    key = (train.epochs, train.steps, train.global_batch, *periods, rows)
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
    if shape.on_gpu and shape.processes_per_node < machine.gpus and not machine.cluster:
        found.append(f"{machine.gpus - shape.processes_per_node} of {machine.gpus} GPUs stay idle")
    idle = [f"resources.{key}" for key in ("time", "memory") if getattr(recipe.resources, key) is not None]
    if idle and not machine.cluster:
        found.append(f"{' and '.join(idle)} only count on a cluster")
    return found
