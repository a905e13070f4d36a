"""Running statistics of batch norms as a function of the global batch, on any number of ranks.

A forward pass normalizes by the statistics of its micro-batch and updates the running ones by them, so after a step each rank has
taken in its own micro-batches alone. An update only weighs the earlier statistics less and adds something to them: a rank's
updates follow from how its statistics changed and how often, and can be applied again to what the ranks before it have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class BatchNorms:
    """The batch norms of a model that keep running statistics, with their state before the current step."""

    def __init__(self, model: nn.Module) -> None:
        norms: list[Any] = [
            module
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
        ]
        self.buffers: list[list[Tensor]] = [
            [norm.running_mean for norm in norms],
            [norm.running_var for norm in norms],
            [norm.num_batches_tracked for norm in norms],
        ]
        self.momenta = [math.nan if norm.momentum is None else norm.momentum for norm in norms]
        self.before_step = [[buffer.clone() for buffer in buffers] for buffers in self.buffers]

    def end_step(self, accelerator: Accelerator, skipped: bool) -> None:
        """Applies the updates of all ranks' micro-batches, in their order in the global batch; none of a skipped step. Every
        rank must call it."""
        if not self.momenta:
            return
        if skipped:
            _copy(self.before_step, self.buffers)
        elif accelerator.num_processes > 1:
            before_step, own = self._flatten(self.before_step), self._flatten(self.buffers)
            by_rank = accelerator.gather(own[None].to(accelerator.device)).to(own.device)
            _copy(self._unflatten(chain(before_step, by_rank, self._per_channel(self.momenta))), self.buffers)
        _copy(self.buffers, self.before_step)

    def _flatten(self, buffers: list[list[Tensor]]) -> Tensor:  # -> (3, channels of all norms)
        means, variances, counts = buffers
        return torch.stack([torch.cat(means).double(), torch.cat(variances).double(), self._per_channel(counts)])

    def _per_channel(self, values: Sequence[Tensor | float]) -> Tensor:  # (norms) -> (channels of all norms,)
        channels = [torch.ones_like(mean, dtype=torch.float64) for mean in self.buffers[0]]
        return torch.cat([channel * value for channel, value in zip(channels, values, strict=True)])

    def _unflatten(self, state: Tensor) -> list[list[Tensor]]:
        sizes = [len(mean) for mean in self.buffers[0]]
        means, variances, counts = (list(values.split(sizes)) for values in state)
        return [means, variances, [count[0] for count in counts]]


def chain(before_step: Tensor, by_rank: Tensor, momenta: Tensor) -> Tensor:
    """Returns the state after the updates of all ranks, one rank after the other: (3, channels) means, variances and numbers of
    updates.

    `before_step`: (3, channels), the same on all ranks. `by_rank`: (ranks, 3, channels), each after its own updates. `momenta`:
    (channels,), NaN for a cumulative average.
    """
    statistics_before, count_before = before_step[:2], before_step[2]
    statistics, count = by_rank[0, :2], by_rank[0, 2]
    for rank in by_rank[1:]:
        num_updates = rank[2] - count_before
        exponential = rank[:2] + (1 - momenta) ** num_updates * (statistics - statistics_before)
        sums = count * statistics + rank[2] * rank[:2] - count_before * statistics_before
        count = count + num_updates
        statistics = torch.where(momenta.isnan(), sums / count.clamp(min=1), exponential)
    return torch.cat([statistics, count[None]])


def _copy(sources: list[list[Tensor]], targets: list[list[Tensor]]) -> None:
    for tensors, copies in zip(sources, targets, strict=True):
        for source, target in zip(tensors, copies, strict=True):
            target.copy_(source)
