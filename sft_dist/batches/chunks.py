"""Where the examples of an optimizer step come from: one table for the whole run or, in a stream, one chunk after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sft_dist.batches.plan import BatchPlan, balanced_shares
from sft_dist.data.rows import Examples
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import Task


@dataclass(frozen=True)
class StreamPosition:
    """Where a chunk of a stream begins. All that a resumed run must know of the stream."""

    number: int = 0  # chunks before it
    epoch: int = 0
    row: int = 0  # rows of this epoch before it
    step: int = 0  # optimizer steps before it


@dataclass(frozen=True)
class Chunk:
    """Examples, and the order in which steps take them."""

    examples: Examples
    plan: BatchPlan
    position: StreamPosition | None = None  # None outside a stream
    digest: str = ""  # set in a stream


class Chunks(Protocol):
    def at(self, step: int) -> Chunk:
        """Returns the chunk that a step takes its examples from; steps come in order."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class SingleChunk:
    """All examples, prepared beforehand."""

    chunk: Chunk

    def at(self, step: int) -> Chunk:
        return self.chunk

    def close(self) -> None:
        return None


def single_chunk(examples: Examples, recipe: Recipe, task: Task) -> SingleChunk:
    shares = balanced_shares(task.class_numbers(examples)) if recipe.data.sampling == "balanced" else None
    train = recipe.train
    return SingleChunk(
        Chunk(examples, BatchPlan(examples.lengths, train.seed, train.global_batch, train.batching, shares))
    )
