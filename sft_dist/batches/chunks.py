"""Where the examples of an optimizer step come from: one table for ever, or, of a stream, one block of it after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sft_dist.batches.plan import BatchPlan, balanced_shares
from sft_dist.data.rows import Examples
from sft_dist.recipe.schema import Recipe


@dataclass(frozen=True)
class Place:
    """Where a block of a stream begins. All that a resumed run must know of the stream."""

    number: int = 0  # blocks before it
    epoch: int = 0
    row: int = 0  # rows of this epoch before it
    step: int = 0  # optimizer steps before it


@dataclass(frozen=True)
class Block:
    """Examples, and in which order the steps take them."""

    examples: Examples
    plan: BatchPlan
    place: Place | None = None
    digest: str = ""  # of a stream's


class Blocks(Protocol):
    def at(self, step: int) -> Block:
        """The block that a step takes its examples from; steps are asked for in order."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class OneBlock:
    """All examples, prepared before."""

    block: Block

    def at(self, step: int) -> Block:
        return self.block

    def close(self) -> None:
        return None


def one_block(examples: Examples, recipe: Recipe) -> OneBlock:
    shares = balanced_shares(examples.numbers("label")) if recipe.data.sampling == "balanced" else None
    train = recipe.train
    return OneBlock(
        Block(examples, BatchPlan(examples.lengths, train.seed, train.global_batch, train.batching, shares))
    )
