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

from sft_dist.batches.chunks import Chunks
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
    indices: np.ndarray  # of the examples; empty when this rank has none (short last batch) and only participates


class MicroBatches(Dataset[MicroBatch]):
    """One rank's micro-batches, counted from the first of step 1."""

    def __init__(
        self,
        chunks: Chunks,
        batch: Batch,
        rank: int,
        task: Task,
        processor: Any,
    ) -> None:
        self.chunks, self.batch, self.rank = chunks, batch, rank
        self.task, self.processor = task, processor

    def __getitem__(self, number: int) -> MicroBatch:
        step, micro_step = divmod(number, self.batch.accumulation)
        return self.at(step + 1, micro_step)

    def at(self, step: int, micro_step: int) -> MicroBatch:
        """Returns the micro-batch of a micro-step (from 0) of a step (from 1)."""
        chunk = self.chunks.at(step)
        num_micro_batches = self.batch.world_size * self.batch.accumulation
        micro_batches = chunk.plan.micro_batches(step, num_micro_batches)
        earlier_draws = chunk.plan.earlier_draws(step, num_micro_batches)
        number = self.rank * self.batch.accumulation + micro_step
        examples, draws = micro_batches[number], earlier_draws[number]
        if not len(examples):  # A rank without examples still takes part, with an example whose loss counts nothing.
            substitute = next(index for index, indices in enumerate(micro_batches) if len(indices))
            examples, draws = micro_batches[substitute][:1], earlier_draws[substitute][:1]
        epoch = chunk.plan.epoch_of(step)
        pairs = zip(examples.tolist(), draws.tolist(), strict=True)
        rngs = [example_rng(chunk.plan.seed, epoch, example, times) for example, times in pairs]
        inputs, targets = collate(self.task, chunk.examples, examples, self.processor, rngs)
        return MicroBatch(inputs, targets, micro_batches[number])

    def indices(self, step: int) -> list[np.ndarray]:
        """Returns the indices of the examples in each micro-batch of a step."""
        first = self.rank * self.batch.accumulation
        num_micro_batches = self.batch.world_size * self.batch.accumulation
        micro_batches = self.chunks.at(step).plan.micro_batches(step, num_micro_batches)
        return micro_batches[first : first + self.batch.accumulation]


def load_micro_batches(source: MicroBatches, first_step: int, last_step: int, workers: int) -> Iterator[MicroBatch]:
    """Yields those of steps `first_step` to `last_step`, both included, in order."""
    per_step = source.batch.accumulation
    numbers = range((first_step - 1) * per_step, last_step * per_step)
    if workers == 0:
        return map(source.__getitem__, numbers)
    loader = DataLoader(
        _FailuresAsItems(source),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        worker_init_fn=_init_worker,
        multiprocessing_context="fork",  # the examples are shared with the workers, not sent to them
    )
    return (_raise_failure(item) for item in loader)


class _FailuresAsItems(Dataset[MicroBatch | Failure | UserError]):
    """Returns a failure as an item: raised in a worker, it would arrive wrapped in the worker's traceback."""

    def __init__(self, source: MicroBatches) -> None:
        self.source = source

    def __getitem__(self, number: int) -> MicroBatch | Failure | UserError:
        try:
            return self.source[number]
        except (Failure, UserError) as failure:
            return failure


def _raise_failure(item: MicroBatch | Failure | UserError) -> MicroBatch:
    if isinstance(item, Failure | UserError):
        raise item
    return item


def _init_worker(worker: int) -> None:
    """Leaves requests to save and stop to the training process: a terminal's Ctrl-C goes to every process. A worker ends
    as soon as that process is killed: otherwise it would hold the run's lock, which a fork inherits."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def die_with_parent() -> None:
    """Has this process killed when its parent ends, however the parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
