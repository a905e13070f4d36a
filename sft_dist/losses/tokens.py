"""A loss over classes at every position of a sequence: next tokens, tags of words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sft_dist.losses.classification import CrossEntropy, Focal
from sft_dist.losses.targets import IGNORED
from sft_dist.recipe.schema import CrossEntropyLoss, Loss

CHUNK = (
    1024  # positions whose logits are fp32 at the same time; with a large vocabulary, logits take most of the memory
)


@dataclass(frozen=True)
class TokenLoss:
    """`inner`, summed over the positions that have a target. An example weighs as much as its targets."""

    inner: CrossEntropy | Focal

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:  # (batch, positions, classes), (batch, positions) -> ()
        has_target = targets != IGNORED
        total = logits[:, :0].float().sum()  # 0 with a gradient, even if no position has a target
        chunks = list(zip(logits[has_target].split(CHUNK), targets[has_target].split(CHUNK), strict=True))
        # Without checkpointing, every chunk's fp32 log-softmax would stay in memory until the backward pass.
        recompute = torch.is_grad_enabled() and len(chunks) > 1
        for chunk, chunk_targets in chunks:
            total = total + (
                checkpoint(self._chunk_loss, chunk, chunk_targets, use_reentrant=False, preserve_rng_state=False)
                if recompute
                else self._chunk_loss(chunk, chunk_targets)
            )
        return total

    def of_each(self, logits: Tensor, targets: Tensor) -> Tensor:  # -> (batch,)
        """Returns the loss of each row, without gradients."""
        return torch.stack([self.total(logits[i : i + 1], targets[i : i + 1]) for i in range(len(targets))])

    def _chunk_loss(self, logits: Tensor, targets: Tensor) -> Tensor:  # (positions, classes), (positions,) -> ()
        return self.inner.total(logits.float(), targets)


def cross_entropy_of_tokens(settings: Loss | None) -> TokenLoss:
    """The loss of a text's tokens, smoothed as the recipe says."""
    smoothing = settings.label_smoothing if isinstance(settings, CrossEntropyLoss) else 0.0
    return TokenLoss(CrossEntropy(None, smoothing))


def padded(rows: list[list[int]], value: int) -> Tensor:
    """Returns (rows, longest) integers, padded on the right."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
