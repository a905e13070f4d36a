"""A loss of classes at every place of a sequence: tokens to come, tags of words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sft_dist.losses.classification import CrossEntropy, Focal
from sft_dist.losses.targets import IGNORED

CHUNK = 1024  # places whose logits are fp32 at a time: with a large vocabulary, they are most of the memory


@dataclass(frozen=True)
class TokenLoss:
    """`inner`, summed over the places that have a target. An example weighs what its targets weigh."""

    inner: CrossEntropy | Focal

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:  # (batch, places, classes), (batch, places) -> ()
        there = targets != IGNORED
        total = logits[:, :0].float().sum()  # 0, with a gradient though no place may have a target
        chunks = list(zip(logits[there].split(CHUNK), targets[there].split(CHUNK), strict=True))
        # Else each chunk's fp32 log-softmax would be kept until the backward pass, and together they are all of it.
        again = torch.is_grad_enabled() and len(chunks) > 1
        for some, wanted in chunks:
            total = total + (
                checkpoint(self._of_chunk, some, wanted, use_reentrant=False, preserve_rng_state=False)
                if again
                else self._of_chunk(some, wanted)
            )
        return total

    def _of_chunk(self, logits: Tensor, targets: Tensor) -> Tensor:  # (places, classes), (places,) -> ()
        return self.inner.total(logits.float(), targets)


def padded(rows: list[list[int]], value: int) -> Tensor:
    """(rows, longest) whole numbers."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
