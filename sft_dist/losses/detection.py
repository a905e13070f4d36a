"""Losses of detectors as sums over images (why sums: `losses/classification.py`).

Transformers computes them inside the model's forward pass and divides by the boxes of the micro-batch, all-reduced over the
processes. With accumulation that is not the loss of the global batch, and processes with unequal numbers of micro-batches
deadlock. Therefore `capture` makes the model return what its loss would be computed from, and the same matching and terms are
summed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.loss import loss_deformable_detr, loss_for_object_detection, loss_rt_detr

from sft_dist.recipe.errors import Problem, UserError

Targets = list[
    dict[str, Tensor]
]  # per image: class_labels (boxes,); boxes (boxes, 4) centre and size, as shares of the image's

# Classes by softmax with a "no object" class, or a sigmoid per class (focal, varifocal).
SOFTMAX = ("detr", "table-transformer", "yolos")
SIGMOID = ("conditional_detr", "deformable_detr", "dab-detr")
RT_DETR = ("rt_detr", "rt_detr_v2")


def capture(model: PreTrainedModel) -> None:
    """Makes the model, when given labels, return the inputs of its loss as `loss_dict`. Raises UserError for a model whose loss
    is not supported."""
    supported = (*SOFTMAX, *SIGMOID, *RT_DETR)
    if model.config.model_type not in supported:
        problem = "its loss cannot be written as a sum over images, which training on any number of processes needs"
        raise UserError(Problem(problem, "model.path", value=model.config.model_type, valid=supported))
    model.loss_function = _captured


def _captured(
    logits: Tensor,
    labels: Targets,
    device: torch.device,
    pred_boxes: Tensor,
    config: PreTrainedConfig,
    outputs_class: Tensor | None = None,
    outputs_coord: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, dict[str, Any], None]:
    needed = {name: extra.get(name) for name in ("enc_topk_logits", "enc_topk_bboxes", "denoising_meta_values")}
    layers = {"outputs_class": outputs_class, "outputs_coord": outputs_coord} if config.auxiliary_loss else {}
    return logits.new_zeros(()), {"logits": logits, "pred_boxes": pred_boxes, **layers, **needed}, None


@dataclass(frozen=True)
class DetectionLoss:
    """Matching loss of DETR (arXiv 2005.12872), Deformable DETR (arXiv 2010.04159) and RT-DETR (arXiv 2304.08069), with the
    costs and coefficients of the model's config."""

    config: PreTrainedConfig

    def total(self, outputs: Any, targets: Targets) -> Tensor:
        """Returns the loss of a model's output after `capture`: (2,) classes and boxes, each with its own divisor, or (1,)."""
        captured = {
            name: value.float() if torch.is_tensor(value) else value for name, value in outputs.loss_dict.items()
        }
        return self._total(captured, targets)

    def of_each(self, outputs: Any, targets: Targets) -> Tensor:  # -> (images, parts)
        """Returns the loss of each image of an evaluation, where there are no denoising queries."""
        captured = {name: value.float() for name, value in outputs.loss_dict.items() if torch.is_tensor(value)}
        images = range(len(targets))
        return torch.stack([self._total(self._of_image(captured, i), targets[i : i + 1]) for i in images])

    def _of_image(self, captured: Mapping[str, Tensor], index: int) -> dict[str, Any]:
        """Of the outputs of all layers, RT-DETR's have images in the first dimension, the others' in the second."""
        axes = {} if self.config.model_type in RT_DETR else dict.fromkeys(("outputs_class", "outputs_coord"), 1)
        return {name: value.narrow(axes.get(name, 0), index, 1) for name, value in captured.items()}

    def _total(self, captured: dict[str, Any], targets: Targets) -> Tensor:
        kind = self.config.model_type
        parts = 2 if kind in SOFTMAX else 1
        if not torch.isfinite(captured["pred_boxes"]).all():  # the matching would fail; the loop handles NaN
            return captured["pred_boxes"].sum() * torch.full((parts,), torch.nan, device=captured["pred_boxes"].device)
        targets = [{name: target[name] for name in ("class_labels", "boxes")} for target in targets]
        if kind in SOFTMAX:
            return _layers_total(_SoftmaxTerms(self.config), captured, targets, self.config)
        if kind in SIGMOID:
            return _layers_total(_SigmoidTerms(self.config), captured, targets, self.config).sum(dim=0, keepdim=True)
        # Each of its terms is a sum divided by the number of boxes in the micro-batch.
        boxes = max(sum(len(target["class_labels"]) for target in targets), 1)
        device = captured["logits"].device
        loss, _, _ = loss_rt_detr.RTDetrForObjectDetectionLoss(
            captured.pop("logits"), targets, device, captured.pop("pred_boxes"), self.config, **captured
        )
        return loss.reshape(1) * boxes

    def weights(self, num_boxes: np.ndarray) -> np.ndarray:  # (images,) -> (images, parts)
        """The boxes' divisor is their number, or one, as in transformers, where a global batch has none."""
        if self.config.model_type not in SOFTMAX:
            return num_boxes[:, None]
        # The classes' divisor is the weight of all queries; queries without an object weigh less.
        queries = getattr(self.config, "num_queries", None) or self.config.num_detection_tokens
        matched = np.minimum(num_boxes, queries)
        return np.stack([matched + (queries - matched) * self.config.eos_coefficient, num_boxes], axis=1)


class _SoftmaxTerms(loss_for_object_detection.ImageLoss):
    """DETR's terms, with class losses summed instead of averaged."""

    def __init__(self, config: PreTrainedConfig) -> None:
        matcher = loss_for_object_detection.HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
        super().__init__(matcher, config.num_labels, config.eos_coefficient, ["labels", "boxes"])

    def loss_labels(self, outputs: Any, targets: Targets, indices: Any, num_boxes: float) -> dict[str, Tensor]:
        logits = outputs["logits"]
        expected = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        matched = [target["class_labels"][j] for target, (_, j) in zip(targets, indices, strict=True)]
        expected[self._get_source_permutation_idx(indices)] = torch.cat(matched)
        total = nn.functional.cross_entropy(logits.transpose(1, 2), expected, self.empty_weight, reduction="sum")
        return {"loss_ce": total}


class _SigmoidTerms(loss_deformable_detr.DeformableDetrImageLoss):
    """Deformable DETR's terms, which are sums when `num_boxes` is one."""

    def __init__(self, config: PreTrainedConfig) -> None:
        matcher = loss_deformable_detr.DeformableDetrHungarianMatcher(
            config.class_cost, config.bbox_cost, config.giou_cost
        )
        super().__init__(matcher, config.num_labels, config.focal_alpha, ["labels", "boxes"])


def _layers_total(
    terms: _SoftmaxTerms | _SigmoidTerms, captured: dict[str, Any], targets: Targets, config: PreTrainedConfig
) -> Tensor:  # (2,) classes and boxes
    """Sums over the last layer and, with `auxiliary_loss`, the layers before it."""
    layers = [{"logits": captured["logits"], "pred_boxes": captured["pred_boxes"]}]
    if config.auxiliary_loss:
        layers += loss_for_object_detection._set_aux_loss(captured["outputs_class"], captured["outputs_coord"])
    terms.to(captured["logits"].device)
    total = captured["logits"].new_zeros(2)
    for layer in layers:
        indices = terms.matcher(layer, targets)
        classes = terms.get_loss("labels", layer, targets, indices, 1.0)["loss_ce"]
        boxes = terms.get_loss("boxes", layer, targets, indices, 1.0)
        box_loss = config.bbox_loss_coefficient * boxes["loss_bbox"] + config.giou_loss_coefficient * boxes["loss_giou"]
        total = total + torch.stack([classes, box_loss])
    return total
