"""Batch and step arithmetic: nodes x processes x micro-batch x accumulation = global batch, exactly. Pure.

The launcher prints it in the plan and the trainer uses it, so both always agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.units import amount_in_steps, period_in_steps, points_at

LARGEST_AUTO_MICRO_BATCH = 32
MAX_POINTS = 100_000  # at which a run saves or validates


@dataclass(frozen=True)
class Batch:
    """How one global batch is shared: world_size x micro_batch x accumulation = global_batch."""

    global_batch: int
    world_size: int
    micro_batch: int
    accumulation: int


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of a run. `save_points` holds every validated step too; all end with the last step."""

    steps_per_epoch: int | None  # None: of a stream, whose length is not known
    total: int
    warmup: int
    save_points: tuple[int, ...]
    eval_points: tuple[int, ...]
    keep_points: tuple[int, ...] = ()  # of those saved, the ones never deleted


def batch_of(recipe: Recipe, world_size: int) -> Batch:
    """Returns the shares of a global batch. Raises UserError naming the nearest values that fit when the division is not exact."""
    return _divided(recipe.train.global_batch, recipe.train.micro_batch, world_size)


@lru_cache(maxsize=1024)  # thousands of runs of one matrix ask the same
def _divided(examples: int, micro: int | Literal["auto"], world_size: int) -> Batch:
    if micro == "auto":
        if examples % world_size:
            raise UserError(_misfit(examples, world_size, f"{world_size} processes", "train.global_batch"))
        share = examples // world_size
        size = max(size for size in range(1, min(share, LARGEST_AUTO_MICRO_BATCH) + 1) if share % size == 0)
        return Batch(examples, world_size, size, share // size)
    if examples % (world_size * micro):
        raise UserError(
            _misfit(examples, world_size * micro, f"{world_size} processes x micro-batch {micro}", "train.global_batch")
        )
    return Batch(examples, world_size, micro, examples // (world_size * micro))


def _misfit(examples: int, unit: int, divisor_text: str, path: str) -> Problem:
    below, above = examples // unit * unit, (examples // unit + 1) * unit
    nearest = [str(value) for value in (below, above) if value]
    return Problem(
        f"{examples} cannot be divided exactly over {divisor_text} (= {unit})",
        path=path,
        value=str(examples),
        hint=f"nearest that fit: {' or '.join(nearest)}; or change the number of processes or train.micro_batch",
    )


def _require_few_points(recipe: Recipe, total: int, per_epoch: int | None) -> None:
    """Raises UserError for a period that ends too often in all the steps: a plan lists each end."""
    for name in ("save_every", "eval_every", "keep_every"):
        period = getattr(recipe.train, name)
        if period and (count := total / max(period_in_steps(period, per_epoch), 1.0)) > MAX_POINTS:
            message = f"{total:,} steps have {count:,.0f} such periods; at most {MAX_POINTS:,} are planned"
            raise UserError(Problem(message, f"train.{name}", value=period, hint="set a longer period, or fewer steps"))


def steps_of(recipe: Recipe, train_rows: int | None) -> Steps:
    """Returns the steps for a training split of `train_rows` examples; the last batch of an epoch may be smaller and is used.

    None: a stream. Its recipe has `train.steps`, and nothing in epochs.
    """
    train = recipe.train
    per_epoch = None if train_rows is None else math.ceil(train_rows / train.global_batch)
    if train.steps is not None or per_epoch is None:
        assert train.steps is not None
        total = train.steps
    else:
        total = max(1, math.ceil((train.epochs or 3.0) * per_epoch - 1e-9))
    warmup = amount_in_steps(train.warmup, total, per_epoch) if train.warmup else 0
    _require_few_points(recipe, total, per_epoch)
    eval_points = points_at(train.eval_every or train.save_every, total, per_epoch)
    keep_points = points_at(train.keep_every, total, per_epoch) if train.keep_every else []
    save_points = sorted({*points_at(train.save_every, total, per_epoch), *eval_points, *keep_points})
    return Steps(per_epoch, total, warmup, tuple(save_points), tuple(eval_points), tuple(keep_points))
