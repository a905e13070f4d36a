"""Image classification: one class, or any number of classes, for an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Features
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from sft_dist.data.augment.image import augment_image, cutmix, mixup
from sft_dist.data.images import content
from sft_dist.data.media import load_image
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks.image_classification import ImageClassificationTask
from sft_dist.tasks.base import Rngs
from sft_dist.tasks.classes import NO_LABEL, ClassTask
from sft_dist.tasks.images import (
    IMAGE_FEATURE,
    load_image_processor,
    pixels_of,
    require_readable_path,
)
from sft_dist.tasks.loading import load_pretrained


class ImageClassification(ClassTask):
    pipeline_tag = "image-classification"
    input_roles = ("image",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.task, ImageClassificationTask)
        self.row_features = Features({"image": IMAGE_FEATURE, "label": self.label_feature})
        self.encoded_features = Features({"image": IMAGE_FEATURE, **self.target_features})
        self.augment = recipe.data.augment.image
        self.mixes = [
            (mix, alpha) for mix, alpha in ((mixup, recipe.task.mixup), (cutmix, recipe.task.cutmix)) if alpha
        ]
        if self.mixes and (problem := _not_for_mixed_labels(recipe)):
            raise UserError(problem)

    # ── rows and examples ───────────────────────────────────────────────────────────────────────────────────────────
    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        label = self.parse(row["label"], number)
        if label is None:
            return NO_LABEL
        if not row["image"]:
            return "no image"
        require_readable_path(row, "image", number)
        return {"image": row["image"], "label": label}

    def identity(self, row: dict[str, Any]) -> bytes:
        return content(row["image"])

    def load_processor(self, source: str, **options: Any) -> Any:
        return load_image_processor(source, **options)

    def encode(self, rows: dict[str, list[Any]], processor: Any) -> dict[str, list[Any]]:
        columns = {"image": rows["image"], "length": [1] * len(rows["image"])}
        return columns | ({"label": self.numbers_of(rows["label"])} if "label" in rows else {})

    def collate(
        self, rows: list[dict[str, Any]], processor: Any, rngs: Rngs | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        images = [load_image(row["image"]) for row in rows]
        if rngs is not None and self.augment is not None:
            augmented = (augment_image(image, self.augment, rng).image for image, rng in zip(images, rngs, strict=True))
            images = [Image.fromarray(pixels) for pixels in augmented]
        inputs = pixels_of(processor, images)
        targets = self.targets_of([row["label"] for row in rows]) if "label" in rows[0] else None
        if rngs is not None and self.mixes and targets is not None:
            inputs["pixel_values"], targets = self._mixed(inputs["pixel_values"], targets, rngs[0])
        return inputs, targets

    def _mixed(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Applies one of the mixes to the whole micro-batch; targets become class weights, (batch, classes)."""
        mix, alpha = self.mixes[rng.integers(len(self.mixes))]
        shares = F.one_hot(targets, len(self.labels)).float() if targets.ndim == 1 else targets
        return mix(images, shares, alpha, rng)

    # ── model and scores ────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        auto = AutoModelForImageClassification
        return load_pretrained(auto, folder, revision, config, self.model_labels, self.model_settings, **options)

    def score(self, predictions: list[Any], examples: Any, processor: Any) -> dict[str, Any]:
        scores = super().score(predictions, examples, processor)
        if self.problem == "single-label":
            scores["top5_accuracy"] = top_accuracy(np.stack(predictions), examples.numbers("label"), 5)
        return scores


def top_accuracy(logits: np.ndarray, targets: np.ndarray, k: int) -> float:  # (examples, classes), (examples,)
    """Share of examples whose class is among the k likeliest; 1 when there are no more than k classes."""
    likeliest = torch.from_numpy(logits).topk(min(k, logits.shape[1])).indices.numpy()
    return float((likeliest == targets[:, None]).any(axis=1).mean())


def _not_for_mixed_labels(recipe: Recipe) -> Problem | None:
    loss = recipe.train.loss
    if loss is None:
        return None
    if loss.name == "focal":
        return Problem(
            "the focal loss has no meaning for labels mixed by task.mixup or task.cutmix", "train.loss", value="focal"
        )
    if getattr(loss, "class_weights", None) is not None:
        message = "with labels mixed by task.mixup or task.cutmix an example has no class to take a weight of"
        hint = "use data.sampling: balanced instead"
        return Problem(message, "train.loss.class_weights", value=str(loss.class_weights), hint=hint)  # type: ignore[union-attr]
    return None
