"""Losses as *sums* over examples, with the weight that each example adds to the divisor.

The divisor of an optimizer step is the weight of its whole global batch, known from the batch plan before the step
starts. Sums can be split over micro-batches and ranks in any way and still give the gradient of one big batch, which a
mean per micro-batch does not when examples have different weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sft_dist.recipe import schema
from sft_dist.recipe.errors import UserError


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
    """A binary cross-entropy per class, averaged over classes; `BCEWithLogitsLoss(pos_weight)` over the global batch."""

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


@dataclass(frozen=True)
class Focal:
    """-w (1 - p)^gamma log p with p the probability of the true class (Lin et al. 2017, arXiv 1708.02002).

    gamma 0 is cross-entropy; a larger gamma reduces the loss of examples that are classified well already. w are the class
    weights, which are in the divisor too, as in cross-entropy.
    """

    gamma: float = 2.0
    class_weights: Tensor | None = None  # (classes,)

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:  # (batch, classes), (batch,) -> ()
        log_p = F.log_softmax(logits, dim=-1).gather(-1, targets[:, None]).squeeze(-1)
        # 1 - p from log p, exact where p is nearly 1; the gradient of 0^gamma would be NaN.
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
    """A binary focal loss per class, averaged over classes; gamma 0 is `BCEWithLogitsLoss(pos_weight)`."""

    gamma: float = 2.0
    class_weights: Tensor | None = None  # (classes,) for the positives

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


ClassLoss = CrossEntropy | BinaryCrossEntropy | Focal | BinaryFocal | MeanSquaredError | Huber


@dataclass(frozen=True)
class LabelLosses:
    """The losses of a type of label."""

    default: type[CrossEntropy | BinaryCrossEntropy | MeanSquaredError]
    focal: type[Focal | BinaryFocal] | None = None


SINGLE_LABEL = LabelLosses(CrossEntropy, Focal)
MULTI_LABEL = LabelLosses(BinaryCrossEntropy, BinaryFocal)
REGRESSION = LabelLosses(MeanSquaredError)


def build_loss(
    loss: schema.Loss | None, losses: LabelLosses, labels: list[str], targets: Callable[[], np.ndarray]
) -> ClassLoss:
    """Builds the loss that a recipe names, or the default. `targets` returns those of the training split, which `balanced` weights
    are computed from. Raises UserError."""
    weights = getattr(loss, "class_weights", None)
    match loss:
        case None:
            return losses.default()
        case schema.CrossEntropyLoss():
            return CrossEntropy(_class_weights(weights, labels, targets), loss.label_smoothing)
        case schema.BinaryCrossEntropyLoss():
            return BinaryCrossEntropy(_class_weights(weights, labels, targets))
        case schema.FocalLoss() if losses.focal:
            return losses.focal(loss.gamma, _class_weights(weights, labels, targets))
        case schema.MseLoss():
            return MeanSquaredError()
        case schema.HuberLoss():
            return Huber(loss.delta)
    raise UserError(f"train.loss: {loss.name} does not fit these labels; the default is {losses.default.__name__}")


def balanced_weights(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns larger weights for rarer classes: `weights_of_counts` for class numbers; negatives / positives for zeros and ones,
    and 1 for a class without positives."""
    if targets.ndim == 2:
        positives = targets.sum(axis=0)
        return np.where(positives > 0, np.maximum(len(targets) - positives, 1) / np.maximum(positives, 1), 1.0)
    return weights_of_counts(np.bincount(targets, minlength=num_classes))


def weights_of_counts(counts: np.ndarray) -> np.ndarray:  # (classes,) rows or pixels of each -> (classes,) weights
    """Returns total / (number of classes that occur x count of the class). A class that does not occur has weight 0: label
    smoothing pulls towards every class by its weight, and nothing would pull away from this one."""
    occurring = np.count_nonzero(counts)
    return np.where(counts > 0, counts.sum() / (max(occurring, 1) * np.maximum(counts, 1)), 0.0)


def _class_weights(setting: object, labels: list[str], targets: Callable[[], np.ndarray]) -> Tensor | None:
    if setting is None:
        return None
    if setting == "balanced":
        values = list(balanced_weights(targets(), len(labels)))
    elif isinstance(setting, dict):
        if unknown := sorted(set(setting) - set(labels)):
            raise UserError(f"train.loss.class_weights names {unknown}, which are not among the labels {labels}")
        values = [setting.get(label, 1.0) for label in labels]
    else:
        values = list(setting)  # type: ignore[call-overload]
        if len(values) != len(labels):
            raise UserError(f"train.loss.class_weights has {len(values)} values for {len(labels)} labels: {labels}")
    return torch.tensor(values, dtype=torch.float32)
