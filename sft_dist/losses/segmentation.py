"""Losses of class maps as sums over images (why sums: `losses/classification.py`).

Cross-entropy is the mean over all labelled pixels of the global batch: the mean over an image's labelled pixels, times their number.
The number is that of the mask before augmentation, so the divisor of a step is known in advance, whatever is cropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from sft_dist.losses.classification import CrossEntropy, Focal


def dice(logits: Tensor, targets: Tensor) -> Tensor:  # (pixels, classes), (pixels,) -> ()
    """Dice coefficient 2 sum(p g) / (sum(p^2) + sum(g^2)) of each class that occurs, averaged (Milletari et al. 2016,
    arXiv 1606.04797)."""
    predicted, true = _areas(logits, targets)
    coefficients = 2 * (predicted * true).sum(dim=0) / ((predicted**2).sum(dim=0) + true.sum(dim=0))
    return coefficients[true.any(dim=0)].mean()


def iou(logits: Tensor, targets: Tensor) -> Tensor:  # (pixels, classes), (pixels,) -> ()
    """Intersection over union, the soft Jaccard index sum(p g) / (sum(p) + sum(g) - sum(p g)), of each class that occurs,
    averaged (Rahman & Wang 2016, Optimizing Intersection-Over-Union; Bertels et al. 2019, arXiv 1911.01685)."""
    predicted, true = _areas(logits, targets)
    intersections = (predicted * true).sum(dim=0)
    ratios = intersections / (predicted.sum(dim=0) + true.sum(dim=0) - intersections)
    return ratios[true.any(dim=0)].mean()


def _areas(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # both (pixels, classes): probabilities, 0 or 1
    probabilities = logits.softmax(dim=-1)
    return probabilities, F.one_hot(targets, logits.shape[-1]).to(probabilities)


OVERLAPS = {"dice": dice, "iou": iou}


class PixelTargets(NamedTuple):
    masks: Tensor  # (batch, H, W)
    pixels: Tensor  # (batch, classes) of each class in the masks before augmentation


@dataclass(frozen=True)
class PixelLoss:
    """A loss of pixels, averaged over the labelled ones of the global batch, and a share of one minus the overlap of the areas of
    an image's classes, averaged over images."""

    pixels: CrossEntropy | Focal
    ignore_index: int
    share: float = 0.0  # of the overlap in the sum
    overlap: Callable[[Tensor, Tensor], Tensor] = dice

    def total(self, outputs: Any, targets: PixelTargets) -> Tensor:  # logits (batch, classes, h, w) -> (2,)
        """Returns the sums over pixels and over images. Resizes the logits to the masks. An image without labelled pixels adds
        nothing."""
        logits = self._resized(outputs, targets)
        total = logits.sum() * logits.new_zeros(2)
        for loss in self._image_losses(logits, targets):
            if loss is not None:
                total = total + loss
        return total

    def of_each(self, outputs: Any, targets: PixelTargets) -> Tensor:  # logits (batch, classes, h, w) -> (batch, 2)
        logits = self._resized(outputs, targets)
        nothing = logits.new_zeros(2)
        return torch.stack([nothing if loss is None else loss for loss in self._image_losses(logits, targets)])

    def _resized(self, outputs: Any, targets: PixelTargets) -> Tensor:  # -> (batch, classes, H, W)
        return F.interpolate(outputs.logits.float(), targets.masks.shape[-2:], mode="bilinear", align_corners=False)

    def _image_losses(self, logits: Tensor, targets: PixelTargets) -> Iterator[Tensor | None]:
        """Yields both parts of each image; None for an image without labelled pixels."""
        pixel_weights = targets.pixels.to(logits) @ self._class_weights(targets.pixels.shape[1]).to(logits)
        images = zip(logits.flatten(2).transpose(1, 2), targets.masks.flatten(1), pixel_weights, strict=True)
        for scores, classes, pixel_weight in images:
            labelled = classes != self.ignore_index
            yield self._image_loss(scores[labelled], classes[labelled], pixel_weight) if labelled.any() else None

    def _image_loss(self, logits: Tensor, targets: Tensor, pixel_weight: Tensor) -> Tensor:
        """Returns both parts of an image: (pixels, classes), (pixels,), () -> (2,)."""
        pixels = overlap = logits.new_zeros(())
        if self.share < 1:
            pixels = (1 - self.share) * pixel_weight * self._pixel_mean(logits, targets)
        if self.share > 0:
            overlap = self.share * (1 - self.overlap(logits, targets))
        return torch.stack([pixels, overlap])

    def _pixel_mean(self, logits: Tensor, targets: Tensor) -> Tensor:  # (pixels, classes), (pixels,) -> ()
        weights = self.pixels.class_weights
        divisor = len(targets) if weights is None else weights.to(logits)[targets].sum()
        if not divisor:  # only classes of weight 0, which have no training pixel; another split may hold them
            return logits.sum() * 0.0
        return self.pixels.total(logits, targets) / divisor

    def weights(self, pixels: np.ndarray) -> np.ndarray:  # (images, classes) before augmentation -> (images, 2)
        """Returns what an image adds to the divisors of the pixels' part, its pixels by their class weights, and of the overlap's."""
        pixel_weights = pixels @ self._class_weights(pixels.shape[1]).double().numpy()
        return np.stack([pixel_weights, np.ones(len(pixels))], axis=1)

    def _class_weights(self, num_classes: int) -> Tensor:  # (classes,)
        return torch.ones(num_classes) if self.pixels.class_weights is None else self.pixels.class_weights


@dataclass(frozen=True)
class QueryLoss:
    """Mask2Former's matching loss (arXiv 2112.01527): classes of its queries, and masks at random points where it is
    uncertain. Each of the two has its own divisor, as in DETR."""

    config: PreTrainedConfig
    ignore_index: int

    def total(self, outputs: Any, targets: PixelTargets) -> Tensor:  # (2,)
        terms = _QueryTerms(self.config, {}).to(targets.masks.device)
        classes = [mask[mask != self.ignore_index].unique() for mask in targets.masks]
        masks = [
            (mask[None] == values[:, None, None]).float() for mask, values in zip(targets.masks, classes, strict=True)
        ]
        layers = [outputs, *(outputs.auxiliary_logits or ())]
        with torch.random.fork_rng(enabled=not torch.is_grad_enabled()):
            if not torch.is_grad_enabled():  # evaluating a model twice gives the same loss
                torch.manual_seed(0)
            return torch.stack([self._layer_loss(terms, layer, classes, masks) for layer in layers]).sum(dim=0)

    def _layer_loss(self, terms: _QueryTerms, layer: Any, classes: list[Tensor], masks: list[Tensor]) -> Tensor:
        masks_logits, class_logits = layer["masks_queries_logits"].float(), layer["class_queries_logits"].float()
        losses = terms(masks_logits, class_logits, masks, classes)
        mask_loss = self.config.mask_weight * losses["loss_mask"] + self.config.dice_weight * losses["loss_dice"]
        return torch.stack([self.config.class_weight * losses["loss_cross_entropy"], mask_loss])

    def weights(self, pixels: np.ndarray) -> np.ndarray:  # (images, classes) before augmentation -> (images, 2)
        classes = np.count_nonzero(pixels, axis=1)
        matched = np.minimum(classes, self.config.num_queries)
        unmatched = self.config.num_queries - matched
        return np.stack([matched + unmatched * self.config.no_object_weight, classes], axis=1)


class _QueryTerms(Mask2FormerLoss):
    """Mask2Former's terms as sums. The library's version all-reduces the number of masks in every forward pass."""

    def get_num_masks(self, class_labels: Any, device: torch.device) -> Tensor:
        return torch.ones((), device=device)

    def loss_labels(self, class_queries_logits: Tensor, class_labels: Any, indices: Any) -> dict[str, Tensor]:
        logits = class_queries_logits
        expected = torch.full(logits.shape[:2], self.num_labels, dtype=torch.int64, device=logits.device)
        matched = [classes[j] for classes, (_, j) in zip(class_labels, indices, strict=True)]
        expected[self._get_predictions_permutation_indices(indices)] = torch.cat(matched)
        total = F.cross_entropy(logits.transpose(1, 2), expected, self.empty_weight, reduction="sum")
        return {"loss_cross_entropy": total}
