"""How the processes of a strategy are started, and which strategy `auto` stands for: the least complicated one that fits into
the GPUs, by an estimate, with the reason. What is particular to a strategy is in its row in `sft_dist/recipe/strategies.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from launch.gpu_memory import ACTIVATION_SHARE, Sizes, SizesUnknown, bytes_needed, sizes_of
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import QloraTuning, Recipe, StrategySettings
from sft_dist.recipe.strategies import GRADIENTS, PARAMETERS, STRATEGIES, Strategy, refusals

MAX_PROCESSES = 1024  # tried when nothing fits


@dataclass(frozen=True)
class Shape:
    """The processes a run gets."""

    nodes: int
    processes_per_node: int
    on_gpu: bool

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


# ── starting ────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Launch:
    """Flags for `accelerate launch`, and environment variables that have to go with them."""

    flags: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


def accelerate_launch(strategy: str, shape: Shape) -> Launch:
    """Returns how the processes are started: the same way for all strategies, without Accelerate's own flags for DeepSpeed and
    FSDP, because the trainer drives both itself. Raises UserError when the strategy needs more or fewer processes."""
    row = STRATEGIES[strategy]
    _check_processes(row, shape.world_size)
    launch = _one_process(shape) if shape.world_size == 1 else _several_processes(shape)
    return launch if shape.on_gpu else replace(launch, env={**launch.env, **row.env_on_cpu})


def _check_processes(row: Strategy, processes: int) -> None:
    if row.min_processes <= processes <= (row.max_processes or processes):
        return
    if processes < row.min_processes:
        reason, fix = f"needs at least {row.min_processes} processes, but {processes} is planned", row.min_processes
    else:
        reason, fix = f"runs one process, but {processes} are planned", 1
    problem = Problem(
        f"strategy `{row.name}` {reason}",
        path="train.strategy",
        value=row.name,
        valid=("auto", _replicated(processes).name),
        hint=f"or set resources.processes_per_node: {fix}",
    )
    raise UserError(problem)


def _replicated(processes: int) -> Strategy:
    """Returns the strategy that shards nothing, for so many processes."""
    rows = [row for row in STRATEGIES.values() if not row.shards]
    return next(row for row in rows if row.min_processes <= processes <= (row.max_processes or processes))


def _one_process(shape: Shape) -> Launch:
    if shape.on_gpu:
        return Launch(("--num_processes", "1", "--gpu_ids", "all", *_common_flags(shape)))
    return Launch(("--cpu", "--num_processes", "1", *_common_flags(shape)))


def _several_processes(shape: Shape) -> Launch:
    """Returns the flags of several processes. On CPU the flag is `--multi_gpu` as well: Accelerate 1.15 starts ONE process
    for `--cpu --num_processes 2`, without an error, and only `--multi_gpu` goes through torchrun. ACCELERATE_USE_CPU then
    makes the processes use gloo."""
    flags = ("--multi_gpu", "--num_processes", str(shape.world_size), "--gpu_ids", "all", *_common_flags(shape))
    if shape.nodes == 1:
        flags += ("--machine_rank", "0", "--main_process_port", "0")  # 0: any free port, so that two runs do not meet
    else:
        flags += ("--rdzv_backend", "static")  # ranks follow the nodes' order, which the job script gives
    return Launch(flags, {} if shape.on_gpu else {"ACCELERATE_USE_CPU": "true"})


def _common_flags(shape: Shape) -> tuple[str, ...]:
    """Returns the flags of every launch: without them Accelerate reads ~/.cache/huggingface/accelerate/default_config.yaml or
    guesses. Precision and compilation are up to the trainer, so both are off here."""
    return ("--num_machines", str(shape.nodes), "--mixed_precision", "no", "--dynamo_backend", "no")


# ── choosing ────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class StrategyChoice:
    """`reason` completes "..., because "."""

    strategy: dict[str, Any]  # name and options
    reason: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Question:
    """What the choice depends on. `gpu_memory` is in bytes, of one GPU."""

    recipe: Recipe
    shape: Shape
    sizes: Sizes
    gpu_memory: int
    is_available: Callable[[Strategy], bool]

    @property
    def limit(self) -> float:
        return (1 - ACTIVATION_SHARE) * self.gpu_memory

    def bytes_of(self, settings: StrategySettings) -> int:
        return bytes_needed(settings.name, _offloads(settings), self.sizes, self.recipe, self.shape.world_size)

    def fits(self, settings: StrategySettings) -> bool:
        return self.bytes_of(settings) <= self.limit


def choose(
    recipe: Recipe,
    shape: Shape,
    gpu_memory: int | None,
    is_available: Callable[[Strategy], bool],
    node_memory: int | None = None,
) -> StrategyChoice:
    """Returns the recipe's own strategy, with a warning when it looks too large, or the one that `auto` stands for.

    `gpu_memory` is in bytes of one GPU, if known; `node_memory` of a node's main memory. `is_available`: whether the packages
    of a strategy are installed.
    """
    choice = _choose(recipe, shape, gpu_memory, is_available)
    return replace(choice, warnings=(*choice.warnings, *_main_memory_warning(recipe, shape, node_memory)))


def _choose(
    recipe: Recipe, shape: Shape, gpu_memory: int | None, is_available: Callable[[Strategy], bool]
) -> StrategyChoice:
    settings = recipe.train.strategy
    row = _replicated(shape.world_size)
    processes = "there is one process" if shape.world_size == 1 else f"there are {shape.world_size} processes"
    question, unknown = None, "the memory of the GPUs is unknown" if shape.on_gpu else ""
    if gpu_memory and shape.on_gpu:
        try:
            question = _Question(recipe, shape, sizes_of(recipe), gpu_memory, is_available)
        except SizesUnknown as error:
            unknown = f"the size of the model is unknown: {error}"
    if settings.name != "auto":
        warnings = _memory_warning(question, settings) if question else ()
        return StrategyChoice(settings.model_dump(), "the recipe says so", warnings)
    if question is None:
        return StrategyChoice({"name": row.name}, f"{processes} ({unknown})" if unknown else processes)
    return _fitting(question, row.settings.model_validate({"name": row.name}), processes)


def _fitting(question: _Question, replicated: StrategySettings, processes: str) -> StrategyChoice:
    """Returns the first candidate that fits, else the one that needs least."""
    candidates = [replicated, *_alternatives(question)]
    for settings in candidates:
        if question.fits(settings):
            reason = f"{processes}, and {_memory_reason(question, replicated, settings)}"
            return StrategyChoice(settings.model_dump(), reason)
    smallest = min(candidates, key=question.bytes_of)
    reason = f"{processes}, and it needs the least memory"
    return StrategyChoice(smallest.model_dump(), reason, _memory_warning(question, smallest))


def _alternatives(question: _Question) -> list[StrategySettings]:
    """Strategies that shard gradients and that nothing in the recipe speaks against, in the order in which they are tried: what
    shards less and needs no further package comes first, offloading last. One process can only offload."""
    rows = [row for row in STRATEGIES.values() if GRADIENTS in row.shards]
    rows.sort(key=lambda row: (len(row.shards), len(row.packages)))
    rows = [row for row in rows if question.is_available(row) and not refusals(row.name, question.recipe)]
    resident = (
        [row.settings.model_validate({"name": row.name}) for row in rows] if question.shape.world_size > 1 else []
    )
    offloaded = [
        row.settings.model_validate({"name": row.name, **dict.fromkeys(row.offload_options, "cpu")})
        for row in rows
        if PARAMETERS in row.shards
    ]
    return [*resident, *offloaded]


def _offloads(settings: StrategySettings) -> bool:
    """Whether the parameters and all that belongs to them are in the machine's main memory."""
    row = STRATEGIES[settings.name]
    return PARAMETERS in row.shards and all(getattr(settings, option) != "none" for option in row.offload_options)


def _memory_reason(question: _Question, replicated: StrategySettings, settings: StrategySettings) -> str:
    gpu = f"a GPU has {_gb(question.gpu_memory)}, of which {ACTIVATION_SHARE:.0%} is reserved for activations"
    size = _gb(question.bytes_of(settings))
    if settings is replicated:
        return f"each needs about {size}; {gpu}"
    return f"each needs about {size}, with {replicated.name} {_gb(question.bytes_of(replicated))}; {gpu}"


def _memory_warning(question: _Question, settings: StrategySettings) -> tuple[str, ...]:
    """Returns a warning that names what would fit; none when the strategy fits."""
    if question.fits(settings):
        return ()
    warning = (
        f"memory may not be enough: {settings.name} needs about {_gb(question.bytes_of(settings))} per GPU before activations, "
        f"but a GPU has {_gb(question.gpu_memory)}"
    )
    for candidate in _alternatives(question):
        if question.fits(candidate):
            offloaded = ", offloaded," if _offloads(candidate) else ""
            return (f"{warning}; train.strategy: {candidate.name}{offloaded} would fit",)
    return (f"{warning}; {_more_gpus(question) or 'tuning: lora or a smaller model would need less'}",)


def _more_gpus(question: _Question) -> str:
    """Returns how many GPUs would be enough, with the strategy that shards most and needs no package; empty when too many."""
    rows = (row for row in STRATEGIES.values() if PARAMETERS in row.shards and not row.packages)
    names = [row.name for row in rows if not refusals(row.name, question.recipe)]
    processes = question.shape.world_size
    while names and (processes := processes * 2) <= MAX_PROCESSES:
        if bytes_needed(names[0], False, question.sizes, question.recipe, processes) <= question.limit:
            return f"{names[0]} on {processes} GPUs would fit"
    return ""


def _main_memory_warning(recipe: Recipe, shape: Shape, node_memory: int | None) -> tuple[str, ...]:
    """Warns when main memory may not hold the models: each process reads one before anything is sharded, and rank 0 gathers all
    of it at every save."""
    if node_memory is None or not shape.on_gpu or isinstance(recipe.tuning, QloraTuning):
        return ()
    try:
        sizes = sizes_of(recipe)
    except SizesUnknown:
        return ()  # the choice says so
    total = 4 * sizes.all * shape.processes_per_node
    if total <= node_memory:
        return ()
    return (
        f"a node's main memory may not be enough: {shape.processes_per_node} processes read {_gb(4 * sizes.all)} of fp32 "
        f"weights each, {_gb(total)} together, but a node has {_gb(node_memory)}; use fewer processes per node",
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.0f} GB" if num_bytes >= 1e10 else f"{num_bytes / 1e9:.1f} GB"
