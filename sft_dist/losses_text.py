"""A loss of classes at every place of a sequence: tokens to come, tags of words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sft_dist.losses import CrossEntropy, Focal

IGNORED = -100  # target of a place that has none
CHUNK = 1024  # places whose logits are fp32 at a time: with a large vocabulary, they are most of the memory


@dataclass(frozen=True)
class TokenLoss:
    """`inner`, summed over the places that have a target. An example weighs what its targets weigh."""

    inner: CrossEntropy | Focal

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:  # (batch, places, classes), (batch, places) -> ()
        there = targets != IGNORED
        total = logits[:, :0].float().sum()  # 0, with a gradient though no place may have a target
        for some, wanted in zip(logits[there].split(CHUNK), targets[there].split(CHUNK), strict=True):
            total = total + self.inner.total(some.float(), wanted)
        return total


def padded(rows: list[list[int]], value: int) -> Tensor:
    """(rows, longest) whole numbers."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
