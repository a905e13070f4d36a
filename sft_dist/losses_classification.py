"""More losses as sums over examples (why sums: `losses.py`): focal for one class and for several, and Huber."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Focal:
    """-w (1 - p)^gamma log p with p the probability of the true class (Lin et al. 2017, arXiv 1708.02002).

    gamma 0 is cross-entropy; the more, the less an example counts that is right already. w are the class weights, in the
    divisor too, as in cross-entropy.
    """

    gamma: float = 2.0
    class_weights: Tensor | None = None  # (classes,)

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:  # (batch, classes), (batch,) -> ()
        log_p = F.log_softmax(logits, dim=-1).gather(-1, targets[:, None]).squeeze(-1)
        # 1 - p from log p, exact where p is nearly 1; the gradient of 0^gamma would be no number.
        missing = torch.clamp(-torch.expm1(log_p), min=torch.finfo(log_p.dtype).tiny)
        losses = -(missing**self.gamma) * log_p
        if self.class_weights is not None:
            losses = losses * self.class_weights.to(logits.device, logits.dtype)[targets]
        return losses.sum()

    def weights(self, targets: np.ndarray) -> np.ndarray:  # (examples,) -> (examples,)
        if self.class_weights is None:
            return np.ones(len(targets))
        return self.class_weights.double().numpy()[targets]


@dataclass(frozen=True)
class BinaryFocal:
    """The focal loss of one yes/no question a class, averaged over classes; gamma 0 is `BCEWithLogitsLoss(pos_weight)`."""

    gamma: float = 2.0
    class_weights: Tensor | None = None  # (classes,) of the positives

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:  # (batch, classes), (batch, classes) -> ()
        pos_weight = None if self.class_weights is None else self.class_weights.to(logits.device, logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight, reduction="none")
        # The probability of the wrong answer.
        missing = torch.sigmoid(torch.where(targets > 0.5, -logits, logits))
        missing = torch.clamp(missing, min=torch.finfo(logits.dtype).tiny)
        return (missing**self.gamma * losses).sum() / logits.shape[-1]

    def weights(self, targets: np.ndarray) -> np.ndarray:
        return np.ones(len(targets))


@dataclass(frozen=True)
class Huber:
    """Squared for errors up to `delta`, linear beyond (Huber 1964); equals `torch.nn.HuberLoss` over the global batch."""

    delta: float = 1.0

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:  # (batch, 1), (batch,) -> ()
        return F.huber_loss(logits.squeeze(-1), targets, reduction="sum", delta=self.delta)

    def weights(self, targets: np.ndarray) -> np.ndarray:
        return np.ones(len(targets))
