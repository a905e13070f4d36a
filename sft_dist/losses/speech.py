"""Losses of transcripts as sums over utterances (why sums: `losses/classification.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sft_dist.losses.targets import IGNORED


@dataclass(frozen=True)
class CtcLoss:
    """-log of the probability of all alignments, summed over utterances (Graves et al. 2006)."""

    blank: int

    def total(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:  # (batch, frames, symbols) -> ()
        return self._loss(outputs, targets, "sum")

    def of_each(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:  # (batch, frames, symbols) -> (batch,)
        return self._loss(outputs, targets, "none")

    def _loss(self, outputs: Tensor, targets: dict[str, Tensor], reduction: str) -> Tensor:
        # On a GPU its backward pass has no deterministic form; the tensors are small.
        device = "cpu" if torch.are_deterministic_algorithms_enabled() else outputs.device
        log_p = F.log_softmax(outputs.float(), dim=-1).transpose(0, 1).to(device)
        labels, frames, lengths = (targets[name].to(device) for name in ("labels", "frames", "label_lengths"))
        return F.ctc_loss(log_p, labels, frames, lengths, blank=self.blank, reduction=reduction).to(outputs.device)


@dataclass(frozen=True)
class TranscriptLoss:
    """Cross-entropy of the transcript's tokens, each after the true ones before it."""

    def total(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:  # (batch, tokens, vocabulary) -> ()
        return F.cross_entropy(
            outputs.flatten(0, 1), targets["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def of_each(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:  # (batch, tokens, vocabulary) -> (batch,)
        labels = targets["labels"]
        losses = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.reshape(labels.shape).sum(dim=1)
