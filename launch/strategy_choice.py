"""Which strategy `auto` stands for: the least complicated one that fits into the GPUs, by an estimate, with the reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from launch.gpu_memory import ROOM, Sizes, needed, sizes_of
from launch.strategies.base import Shape
from sft_dist.recipe.schema import (
    Fsdp2Strategy,
    PlainStrategy,
    QloraTuning,
    Recipe,
    Strategy,
    Zero3Strategy,
    ZeroStrategy,
)
from sft_dist.recipe.strategies import refusals

MOST_PROCESSES = 1024  # looked for when nothing fits


@dataclass(frozen=True)
class Choice:
    strategy: dict[str, Any]  # name and options
    why: str
    warnings: tuple[str, ...] = ()


# In the order they are tried after `single` or `ddp`. fsdp2 stands before zero3: it needs no further package.
SHARED: tuple[Strategy, ...] = (
    ZeroStrategy(name="zero2"),
    Fsdp2Strategy(name="fsdp2"),
    Zero3Strategy(name="zero3"),
    Fsdp2Strategy(name="fsdp2", offload="cpu"),
    Zero3Strategy(name="zero3", offload_optimizer="cpu", offload_parameters="cpu"),
)


def choose(
    recipe: Recipe, shape: Shape, gpu_memory: int | None, has_deepspeed: bool, node_memory: int | None = None
) -> Choice:
    """`gpu_memory`: bytes of one GPU, if known; `node_memory`: of a machine's own. What the recipe names is taken as it is,
    with a warning when it looks too large."""
    choice = _choose(recipe, shape, gpu_memory, has_deepspeed)
    return replace(choice, warnings=(*choice.warnings, *_too_many(recipe, shape, node_memory)))


def _too_many(recipe: Recipe, shape: Shape, node_memory: int | None) -> tuple[str, ...]:
    """Each process reads the model before anything is shared, and rank 0 gathers the whole of it at every save."""
    sizes = sizes_of(recipe) if node_memory and shape.on_gpu and not isinstance(recipe.tuning, QloraTuning) else None
    if node_memory is None or sizes is None:
        return ()
    together = 4 * sizes.all * shape.processes_per_node
    if together <= node_memory:
        return ()
    return (
        f"a node's own memory may not be enough: {shape.processes_per_node} processes read {_gb(4 * sizes.all)} of fp32 "
        f"weights each, {_gb(together)} together, and a node has {_gb(node_memory)}; fewer processes a node need less",
    )


def _choose(recipe: Recipe, shape: Shape, gpu_memory: int | None, has_deepspeed: bool) -> Choice:
    asked = recipe.train.strategy
    plain = PlainStrategy(name="single" if shape.world_size == 1 else "ddp")
    processes = "there is one process" if shape.world_size == 1 else f"there are {shape.world_size} processes"
    if not shape.on_gpu:
        return (
            Choice(asked.model_dump(), "the recipe says so")
            if asked.name != "auto"
            else Choice(plain.model_dump(), processes)
        )
    sizes = sizes_of(recipe) if gpu_memory else None
    if asked.name != "auto":
        known = gpu_memory is not None and sizes is not None
        warnings = () if not known else _too_large(asked, recipe, shape, sizes, gpu_memory, has_deepspeed)
        return Choice(asked.model_dump(), "the recipe says so", warnings)
    if gpu_memory is None or sizes is None:
        unknown = "the GPUs' memory" if gpu_memory is None else "the model's size"
        return Choice(plain.model_dump(), f"{processes} ({unknown} is not known)")
    candidates = [plain, *_allowed(recipe, shape, has_deepspeed)]
    for candidate in candidates:
        if _bytes(candidate, sizes, recipe, shape.world_size) <= (1 - ROOM) * gpu_memory:
            why = _why(plain, candidate, sizes, recipe, shape, gpu_memory)
            return Choice(candidate.model_dump(), f"{processes}, and {why}")
    last = min(candidates, key=lambda one: _bytes(one, sizes, recipe, shape.world_size))
    warnings = _too_large(last, recipe, shape, sizes, gpu_memory, has_deepspeed)
    return Choice(last.model_dump(), f"{processes}, and it needs the least memory", warnings)


def _allowed(recipe: Recipe, shape: Shape, has_deepspeed: bool) -> list[Strategy]:
    """Strategies that share the model and that nothing in the recipe speaks against. One process has nobody to share
    with but the machine's own memory."""
    return [
        one
        for one in SHARED
        if (has_deepspeed or one.name == "fsdp2")
        and (shape.world_size > 1 or _offloads(one))
        and not refusals(one.name, recipe)
    ]


def _offloads(strategy: Strategy) -> bool:
    if isinstance(strategy, Zero3Strategy):
        return "none" not in (strategy.offload_parameters, strategy.offload_optimizer)
    return isinstance(strategy, Fsdp2Strategy) and strategy.offload == "cpu"


def _bytes(strategy: Strategy, sizes: Sizes, recipe: Recipe, processes: int) -> int:
    return needed(strategy.name, _offloads(strategy), sizes, recipe, processes)


def _why(plain: Strategy, chosen: Strategy, sizes: Sizes, recipe: Recipe, shape: Shape, gpu_memory: int) -> str:
    room = f"a GPU has {_gb(gpu_memory)}, of which {ROOM:.0%} is left to activations"
    own = _gb(_bytes(chosen, sizes, recipe, shape.world_size))
    if chosen is plain:
        return f"each needs about {own}; {room}"
    other = _gb(_bytes(plain, sizes, recipe, shape.world_size))
    return f"each needs about {own}, with {plain.name} {other}; {room}"


def _too_large(
    strategy: Strategy, recipe: Recipe, shape: Shape, sizes: Sizes | None, gpu_memory: int | None, has_deepspeed: bool
) -> tuple[str, ...]:
    assert sizes is not None
    assert gpu_memory is not None
    most = (1 - ROOM) * gpu_memory
    if (own := _bytes(strategy, sizes, recipe, shape.world_size)) <= most:
        return ()
    problem = (
        f"memory may not be enough: {strategy.name} needs about {_gb(own)} a GPU before activations, and a GPU has "
        f"{_gb(gpu_memory)}"
    )
    for candidate in _allowed(recipe, shape, has_deepspeed):
        if _bytes(candidate, sizes, recipe, shape.world_size) <= most:
            return (
                f"{problem}; train.strategy: {candidate.name}{', offloaded,' if _offloads(candidate) else ''} would fit",
            )
    processes = shape.world_size
    while (processes := processes * 2) <= MOST_PROCESSES:
        if not refusals("fsdp2", recipe) and needed("fsdp2", False, sizes, recipe, processes) <= most:
            return (f"{problem}; fsdp2 on {processes} GPUs would fit",)
    return (f"{problem}; tuning: lora or a smaller model would need less",)


def _gb(number: float) -> str:
    return f"{number / 1e9:.0f} GB" if number >= 1e10 else f"{number / 1e9:.1f} GB"
