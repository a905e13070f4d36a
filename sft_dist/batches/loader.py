"""Micro-batches in the order of the batch plan, collated ahead by worker processes when the recipe asks for some.

What is in a micro-batch depends on its number alone, so workers change when it is made and nothing else.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from sft_dist.batches.chunks import Blocks
from sft_dist.batches.plan import example_rng
from sft_dist.data.encode import collate
from sft_dist.recipe.arithmetic import Batch
from sft_dist.recipe.errors import UserError
from sft_dist.run.failures import Failure
from sft_dist.tasks.base import Task

_PR_SET_PDEATHSIG = 1  # Linux: a signal to this process when its parent dies


@dataclass(frozen=True)
class MicroBatch:
    inputs: dict[str, Any]
    targets: Any
    indices: np.ndarray  # of the examples; empty when this rank has none (short last batch) and only takes part


class MicroBatches(Dataset[MicroBatch]):
    """One rank's micro-batches, counted from the first of step 1."""

    def __init__(
        self,
        blocks: Blocks,
        batch: Batch,
        rank: int,
        task: Task,
        processor: Any,
    ) -> None:
        self.blocks, self.batch, self.rank = blocks, batch, rank
        self.task, self.processor = task, processor

    def __getitem__(self, number: int) -> MicroBatch:
        step, turn = divmod(number, self.batch.accumulation)
        return self.at(step + 1, turn)

    def at(self, step: int, turn: int) -> MicroBatch:
        """The micro-batch `turn` (from 0) of a step (from 1)."""
        block = self.blocks.at(step)
        num_slots = self.batch.world_size * self.batch.accumulation
        slots, before = block.plan.slots(step, num_slots), block.plan.times_before(step, num_slots)
        number = self.rank * self.batch.accumulation + turn
        shown, drawn = slots[number], before[number]
        if not len(shown):  # A rank without examples still takes part, with one whose loss counts nothing.
            other = next(place for place, some in enumerate(slots) if len(some))
            shown, drawn = slots[other][:1], before[other][:1]
        epoch = block.plan.epoch_of(step)
        pairs = zip(shown.tolist(), drawn.tolist(), strict=True)
        rngs = [example_rng(block.plan.seed, epoch, example, times) for example, times in pairs]
        return MicroBatch(*collate(self.task, block.examples, shown, self.processor, rngs), slots[number])

    def indices(self, step: int) -> list[np.ndarray]:
        """Which examples are in each micro-batch of a step."""
        first = self.rank * self.batch.accumulation
        slots = self.blocks.at(step).plan.slots(step, self.batch.world_size * self.batch.accumulation)
        return slots[first : first + self.batch.accumulation]


def micro_batches(source: MicroBatches, first_step: int, last_step: int, workers: int) -> Iterator[MicroBatch]:
    """Those of steps `first_step` to `last_step`, both included, in order."""
    each = source.batch.accumulation
    numbers = range((first_step - 1) * each, last_step * each)
    if workers == 0:
        return map(source.__getitem__, numbers)
    made = DataLoader(
        _Told(source),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        worker_init_fn=_leave_alone,
        multiprocessing_context="fork",  # the examples are shared with the workers, not sent to them
    )
    return (_given(item) for item in made)


class _Told(Dataset[MicroBatch | Failure | UserError]):
    """A failure comes as it is: raised in a worker, it would arrive wrapped in the worker's traceback."""

    def __init__(self, source: MicroBatches) -> None:
        self.source = source

    def __getitem__(self, number: int) -> MicroBatch | Failure | UserError:
        try:
            return self.source[number]
        except (Failure, UserError) as failure:
            return failure


def _given(item: MicroBatch | Failure | UserError) -> MicroBatch:
    if isinstance(item, Failure | UserError):
        raise item
    return item


def _leave_alone(worker: int) -> None:
    """The training process alone answers the requests to save and stop; a terminal's Ctrl-C goes to every process. And a
    worker goes at once when that process is killed: it would hold on to the run's lock, which a fork inherits."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def die_with_parent() -> None:
    """Killed when the process that started this one is gone, whatever has ended that."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
