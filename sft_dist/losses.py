"""Losses as *sums* over examples, with the weight each example adds to the divisor.

The divisor of an optimizer step is the weight of its whole global batch, known from the batch plan before the step
starts. Sums can be split over micro-batches and ranks in any way and still give the gradient of one big batch, which a
mean per micro-batch does not once examples weigh differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import LOSSES, BinaryCrossEntropyLoss, CrossEntropyLoss, Loss


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy; equals `torch.nn.CrossEntropyLoss(weight, label_smoothing)` over the global batch."""

    class_weights: Tensor | None = None  # (classes,)
    label_smoothing: float = 0.0

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:  # (batch, classes), (batch,) -> ()
        weight = None if self.class_weights is None else self.class_weights.to(logits.device, logits.dtype)
        return F.cross_entropy(logits, targets, weight=weight, label_smoothing=self.label_smoothing, reduction="sum")

    def weights(self, targets: np.ndarray) -> np.ndarray:  # (examples,) -> (examples,)
        if self.class_weights is None:
            return np.ones(len(targets))
        return self.class_weights.double().numpy()[targets]


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """One yes/no cross-entropy a class, averaged over classes; `BCEWithLogitsLoss(pos_weight)` over the global batch."""

    class_weights: Tensor | None = None  # (classes,)

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:  # (batch, classes), (batch, classes) -> ()
        pos_weight = None if self.class_weights is None else self.class_weights.to(logits.device, logits.dtype)
        total = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight, reduction="sum")
        return total / logits.shape[-1]

    def weights(self, targets: np.ndarray) -> np.ndarray:
        return np.ones(len(targets))


@dataclass(frozen=True)
class MeanSquaredError:
    def total(self, logits: Tensor, targets: Tensor) -> Tensor:  # (batch, 1), (batch,) -> ()
        return F.mse_loss(logits.squeeze(-1), targets, reduction="sum")

    def weights(self, targets: np.ndarray) -> np.ndarray:
        return np.ones(len(targets))


SumLoss = CrossEntropy | BinaryCrossEntropy | MeanSquaredError


def build_loss(loss: Loss | None, problem: str, labels: list[str], targets: np.ndarray) -> SumLoss:
    """`targets` are those of the training split; `balanced` weights are counted on them."""
    match loss.name if loss else LOSSES[problem][0]:
        case "cross-entropy":
            assert loss is None or isinstance(loss, CrossEntropyLoss)
            weights, smoothing = (loss.class_weights, loss.label_smoothing) if loss else (None, 0.0)
            counts = np.bincount(targets, minlength=len(labels))
            balanced = len(targets) / (len(labels) * np.maximum(counts, 1))
            return CrossEntropy(_class_weights(weights, labels, balanced), smoothing)
        case "binary-cross-entropy":
            assert loss is None or isinstance(loss, BinaryCrossEntropyLoss)
            weights = loss.class_weights if loss else None
            positives = np.maximum(targets.sum(axis=0), 1)
            balanced = np.maximum(len(targets) - positives, 1) / positives
            return BinaryCrossEntropy(_class_weights(weights, labels, balanced))
        case "mse":
            return MeanSquaredError()
        case name:
            raise UserError(f"there is no loss {name}")


def _class_weights(setting: object, labels: list[str], balanced: np.ndarray) -> Tensor | None:
    if setting is None:
        return None
    if setting == "balanced":
        values = list(balanced)
    elif isinstance(setting, dict):
        if strange := sorted(set(setting) - set(labels)):
            raise UserError(f"train.loss.class_weights names {strange}, which are not among the labels {labels}")
        values = [setting.get(label, 1.0) for label in labels]
    else:
        values = list(setting)  # type: ignore[call-overload]
        if len(values) != len(labels):
            raise UserError(f"train.loss.class_weights has {len(values)} values for {len(labels)} labels: {labels}")
    return torch.tensor(values, dtype=torch.float32)
