"""Object detection: boxes with classes in an image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Features, List, Value
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel

from sft_dist.data.augment.image import augment_image, clip_boxes
from sft_dist.data.images import content
from sft_dist.data.media import load_image
from sft_dist.losses.detection import SOFTMAX, DetectionLoss, capture
from sft_dist.metrics.vision import MOST_BOXES, box_scores
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks.object_detection import ObjectDetectionTask
from sft_dist.tasks.base import BaseTask, Rngs
from sft_dist.tasks.classes import NO_LABEL, class_name, sorted_labels, unknown_classes
from sft_dist.tasks.images import (
    IMAGE_FEATURE,
    config_of,
    load_image_processor,
    pixels_of,
    require_readable_path,
    warn_of_batch_statistics,
)
from sft_dist.tasks.loading import load_pretrained

if TYPE_CHECKING:
    from sft_dist.data.rows import Examples, Rows


class ObjectDetection(BaseTask):
    """Boxes are x, y, width, height in pixels of the original image; the model receives centre and size as fractions of it.

    Each image is padded to the largest of its micro-batch. Models like DETR receive a padding mask; YOLOS has none and
    sees the padding.
    """

    pipeline_tag = "object-detection"
    input_roles = ("image",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.task, ObjectDetectionTask)
        self.threshold = recipe.task.threshold
        self.renamed = dict(recipe.data.clean.map_labels)
        self.augment = recipe.data.augment.image
        boxes = List(List(Value("float64")))
        self.row_features = Features(
            {"image": IMAGE_FEATURE, "objects": {"bbox": boxes, "category": List(Value("string"))}}
        )
        self.encoded_features = Features({"image": IMAGE_FEATURE, "boxes": boxes, "classes": List(Value("int64"))})
        self.model_config: PreTrainedConfig | None = None  # of the model that was built

    # ── rows and examples ───────────────────────────────────────────────────────────────────────────────────────────
    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        """Reads a row. An image without objects is valid, but a missing list of objects is not."""
        if not row["image"]:
            return "no image"
        require_readable_path(row, "image", number)
        if row["objects"] is None:
            return NO_LABEL
        boxes, names = _boxes_and_names(row["objects"], number)
        names = [self.renamed.get(name, name) for name in names]
        if self.recipe.data.labels and (unknown := sorted(set(names) - set(self.recipe.data.labels))):
            message, valid = f"row {number}: not one of data.labels", tuple(self.recipe.data.labels[:20])
            raise UserError(Problem(message, "data.labels", value=", ".join(unknown), valid=valid))
        return {"image": row["image"], "objects": {"bbox": boxes, "category": names}}

    def identity(self, row: dict[str, Any]) -> bytes:
        return content(row["image"])

    def learn_labels(self, train: Rows) -> None:
        if self.labels:
            return
        self.labels = sorted_labels(name for objects in train.column("objects") for name in objects["category"])
        if not self.labels:
            raise UserError(Problem("there is no object in the training rows", "data.columns.objects"))

    def load_processor(self, source: str, **options: Any) -> Any:
        return load_image_processor(source, **options)

    def encode(self, rows: dict[str, list[Any]], processor: Any) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"image": rows["image"], "length": [1] * len(rows["image"])}
        if "objects" not in rows:
            return columns
        number = {label: i for i, label in enumerate(self.labels)}
        categories = [objects["category"] for objects in rows["objects"]]
        if unknown := sorted({name for class_names in categories for name in class_names} - set(number)):
            raise UserError(unknown_classes(unknown, self.labels))
        return columns | {
            "boxes": [objects["bbox"] for objects in rows["objects"]],
            "classes": [[number[name] for name in class_names] for class_names in categories],
            "num_boxes": [len(class_names) for class_names in categories],
        }

    def collate(
        self, rows: list[dict[str, Any]], processor: Any, rngs: Rngs | None
    ) -> tuple[dict[str, Any], list[dict[str, Tensor]] | None]:
        images, targets = [], []
        for position, row in enumerate(rows):
            image = load_image(row["image"])
            boxes = np.array(row.get("boxes", []), dtype=np.float64).reshape(-1, 4)
            if rngs is not None and self.augment is not None:
                changed = augment_image(image, self.augment, rngs[position], boxes)
                image, boxes, box_indices = Image.fromarray(changed.image), changed.boxes, changed.box_indices
            else:
                boxes, box_indices = clip_boxes(boxes, image.width, image.height, visible=0.0)
            images.append(image)
            targets.append(_target(boxes, np.array(row.get("classes", []), dtype=np.int64)[box_indices], image))
        inputs: dict[str, Any] = pixels_of(processor, images)
        inputs["sizes"] = torch.tensor([[image.width, image.height] for image in images])
        if "boxes" not in rows[0]:
            return inputs, None
        # With labels, RT-DETR adds its denoising queries, and every model adds what the loss is computed from.
        return inputs | {"labels": targets}, targets

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        auto = AutoModelForObjectDetection
        model = load_pretrained(auto, folder, revision, config, self.labels, **options)
        capture(model)
        self.model_config = model.config
        warn_of_batch_statistics(model)
        return model

    def build_loss(self, train: Examples) -> DetectionLoss:
        return DetectionLoss(self.model_config or config_of(self.recipe, self.labels))

    def weights(self, loss: DetectionLoss, examples: Examples) -> np.ndarray:
        return loss.weights(examples.numbers("num_boxes"))

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        return model(**{name: value for name, value in inputs.items() if name != "sizes"})

    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Any, processor: Any) -> list[Any]:
        kind = model.config.model_type  # type: ignore[union-attr]
        return predicted_boxes(outputs.logits.float(), outputs.pred_boxes.float(), inputs["sizes"], kind in SOFTMAX)

    # ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def score(self, predictions: list[Any], examples: Examples, processor: Any) -> dict[str, Any]:
        boxes, classes = examples.column("boxes"), examples.column("classes")
        truth = [
            {"boxes": np.array(row, dtype=np.float64).reshape(-1, 4), "labels": np.array(labels, dtype=np.int64)}
            for row, labels in zip(boxes, classes, strict=True)
        ]
        return box_scores(predictions, truth, self.labels)

    def describe(self, predictions: list[Any], processor: Any) -> list[dict[str, Any]]:
        return [
            {
                "objects": [
                    {"label": self.labels[label], "score": float(score), "box": [round(float(x), 1) for x in box]}
                    for box, score, label in zip(
                        prediction["boxes"], prediction["scores"], prediction["labels"], strict=True
                    )
                    if score >= self.threshold
                ]
            }
            for prediction in predictions
        ]


def predicted_boxes(
    logits: Tensor,  # (images, queries, classes), with "nothing" as the last class when `softmax`
    boxes: Tensor,  # (images, queries, 4) centre and size, as fractions of the image's
    sizes: Tensor,  # (images, 2) width and height in pixels
    softmax: bool,
) -> list[dict[str, np.ndarray]]:
    """Returns the likeliest boxes of each image: boxes (n, 4) x, y, width, height in pixels, inside it; scores (n,)
    descending; labels (n,). Each query has one class with softmax, any number without."""
    count = min(MOST_BOXES, boxes.shape[1])
    if softmax:
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, queries = scores.topk(count)
        labels = labels.gather(1, queries)
    else:
        scores, indices = logits.sigmoid().flatten(1).topk(count)
        queries, labels = indices // logits.shape[-1], indices % logits.shape[-1]
    query_boxes = boxes.gather(1, queries[..., None].expand(-1, -1, 4))
    scale = sizes.to(boxes)[:, None]  # (images, 1, 2)
    low = (query_boxes[..., :2] - query_boxes[..., 2:] / 2).clamp(0, 1) * scale
    high = (query_boxes[..., :2] + query_boxes[..., 2:] / 2).clamp(0, 1) * scale
    pixel_boxes = torch.cat([low, high - low], dim=-1)
    return [
        {"boxes": box.numpy(), "scores": score.numpy(), "labels": label.numpy()}
        for box, score, label in zip(pixel_boxes.detach().cpu(), scores.detach().cpu(), labels.cpu(), strict=True)
    ]


def _target(boxes: np.ndarray, classes: np.ndarray, image: Image.Image) -> dict[str, Tensor]:
    """Computes relative boxes here: the image processor would relate them to the padded image, and so to the rest of the
    micro-batch."""
    relative = boxes / [image.width, image.height, image.width, image.height]
    centred = np.concatenate([relative[:, :2] + relative[:, 2:] / 2, relative[:, 2:]], axis=1)
    return {"class_labels": torch.from_numpy(classes), "boxes": torch.from_numpy(centred).float()}


def _boxes_and_names(objects: Any, number: int) -> tuple[list[list[float]], list[str]]:
    """Accepts {"bbox": [...], "category": [...]} or a list of {"bbox", "category"}. Skips boxes without area, which large
    data sets contain. Raises UserError for invalid boxes."""
    if isinstance(objects, list):
        objects = {key: [value[key] for value in objects] for key in ("bbox", "category")}
    boxes, names = list(objects["bbox"]), [class_name(value, number, "objects") for value in objects["category"]]
    if len(boxes) != len(names):
        message, counts = f"row {number}: each box needs one category", f"{len(boxes)} boxes, {len(names)} categories"
        raise UserError(Problem(message, "data.columns.objects", value=counts))
    for box in boxes:
        if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] < 0 or box[3] < 0:
            message = f"row {number}: a box needs x, y, width and height in pixels"
            raise UserError(Problem(message, "data.columns.objects", value=str(list(box))))
    valid = [position for position, box in enumerate(boxes) if box[2] > 0 and box[3] > 0]
    return [[float(x) for x in boxes[i]] for i in valid], [names[i] for i in valid]
