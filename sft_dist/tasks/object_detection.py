"""Object detection: boxes with classes in an image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Features, List, Value
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel

from sft_dist.data.augment.image import augment_image, clip_boxes
from sft_dist.data.images import content
from sft_dist.data.media import MediaError, StoredSize, is_url, load_image, name_of, read_size
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
            {
                "image": IMAGE_FEATURE,
                "objects": {"bbox": boxes, "category": List(Value("string")), "iscrowd": List(Value("int64"))},
            }
        )
        self.encoded_features = Features(
            {
                "image": IMAGE_FEATURE,
                "boxes": boxes,
                "classes": List(Value("int64")),
                "iscrowd": List(Value("int64")),
            }
        )
        self.model_config: PreTrainedConfig | None = None  # of the model that was built

    # ── rows and examples ───────────────────────────────────────────────────────────────────────────────────────────
    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        """Reads a row. An image without objects is valid, but a missing list of objects is not."""
        if not row["image"]:
            return "no image"
        require_readable_path(row, "image", number)
        if row["objects"] is None:
            return NO_LABEL
        boxes, names, crowds = _objects_of(row["objects"], number)
        boxes = _upright_boxes(boxes, row, number)
        names = [self.renamed.get(name, name) for name in names]
        if self.recipe.data.labels and (unknown := sorted(set(names) - set(self.recipe.data.labels))):
            message, valid = f"row {number}: not one of data.labels", tuple(self.recipe.data.labels[:20])
            raise UserError(Problem(message, "data.labels", value=", ".join(unknown), valid=valid))
        return {"image": row["image"], "objects": {"bbox": boxes, "category": names, "iscrowd": crowds}}

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
            "iscrowd": [objects["iscrowd"] for objects in rows["objects"]],
            "num_boxes": [objects["iscrowd"].count(0) for objects in rows["objects"]],
        }

    def collate(
        self, rows: list[dict[str, Any]], processor: Any, rngs: Rngs | None
    ) -> tuple[dict[str, Any], list[dict[str, Tensor]] | None]:
        images, targets = [], []
        for position, row in enumerate(rows):
            image = load_image(row["image"])
            single = np.array(row.get("iscrowd", []), dtype=np.int64) == 0
            boxes = np.array(row.get("boxes", []), dtype=np.float64).reshape(-1, 4)[single]
            classes = np.array(row.get("classes", []), dtype=np.int64)[single]
            if rngs is not None and self.augment is not None:
                changed = augment_image(image, self.augment, rngs[position], boxes)
                image, boxes, box_indices = Image.fromarray(changed.image), changed.boxes, changed.box_indices
            else:
                boxes, box_indices = clip_boxes(boxes, image.width, image.height, visible=0.0)
            images.append(image)
            targets.append(_target(boxes, classes[box_indices], image))
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
    def references(self, examples: Examples) -> list[Any]:
        columns = (examples.column(name) for name in ("boxes", "classes", "iscrowd"))
        return [
            {
                "boxes": np.array(boxes, dtype=np.float64).reshape(-1, 4),
                "labels": np.array(labels, dtype=np.int64),
                "iscrowd": np.array(crowds, dtype=np.int64),
            }
            for boxes, labels, crowds in zip(*columns, strict=True)
        ]

    def score(self, predictions: list[Any], examples: Examples, processor: Any) -> dict[str, Any]:
        return box_scores(predictions, self.references(examples), self.labels)

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
    """Returns the likeliest boxes of each image, as many as the model has queries and at most MOST_BOXES of a class: boxes (n, 4) x, y, width, height in pixels, inside it; scores (n,)
    descending; labels (n,). Each query has one class with softmax, any number without."""
    count = boxes.shape[1]
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
    rank = (
        F.one_hot(labels, logits.shape[-1]).cumsum(dim=1).gather(2, labels[..., None])[..., 0]
    )  # from 1, in its class
    tensors = (tensor.detach().cpu() for tensor in (pixel_boxes, scores, labels, rank <= MOST_BOXES))
    return [
        {"boxes": box[counted].numpy(), "scores": score[counted].numpy(), "labels": label[counted].numpy()}
        for box, score, label, counted in zip(*tensors, strict=True)
    ]


def _target(boxes: np.ndarray, classes: np.ndarray, image: Image.Image) -> dict[str, Tensor]:
    """Computes relative boxes here: the image processor would relate them to the padded image, and so to the rest of the
    micro-batch."""
    relative = boxes / [image.width, image.height, image.width, image.height]
    centred = np.concatenate([relative[:, :2] + relative[:, 2:] / 2, relative[:, 2:]], axis=1)
    return {"class_labels": torch.from_numpy(classes), "boxes": torch.from_numpy(centred).float()}


def _objects_of(objects: Any, number: int) -> tuple[list[list[float]], list[str], list[int]]:
    """Returns boxes, names and crowds of {"bbox": [...], "category": [...]} or a list of {"bbox", "category"}, with
    `iscrowd` where there is one. Skips boxes without area, which large data sets contain. Raises UserError for invalid boxes."""
    if isinstance(objects, list):
        crowds = [value.get("iscrowd") for value in objects]
        objects = {key: [value[key] for value in objects] for key in ("bbox", "category")} | {"iscrowd": crowds}
    boxes, names = list(objects["bbox"]), [class_name(value, number, "objects") for value in objects["category"]]
    crowds = [int(bool(crowd)) for crowd in objects.get("iscrowd") or [0] * len(boxes)]
    if not len(boxes) == len(names) == len(crowds):
        message, counts = f"row {number}: each box needs one category", f"{len(boxes)} boxes, {len(names)} categories"
        raise UserError(Problem(message, "data.columns.objects", value=counts))
    for box in boxes:
        if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] < 0 or box[3] < 0:
            message = f"row {number}: a box needs x, y, width and height in pixels"
            raise UserError(Problem(message, "data.columns.objects", value=str(list(box))))
    valid = [position for position, box in enumerate(boxes) if box[2] > 0 and box[3] > 0]
    if valid and all(0 <= value <= 1 for box in boxes for value in box):
        message = f"row {number}: every box lies within 0 to 1: these are shares of the image, and boxes are in pixels"
        hint = "multiply x and width by the width of the image, y and height by its height"
        raise UserError(Problem(message, "data.columns.objects", value=str(list(boxes[valid[0]])), hint=hint))
    return [[float(x) for x in boxes[i]] for i in valid], [names[i] for i in valid], [crowds[i] for i in valid]


def _upright_boxes(boxes: list[list[float]], row: dict[str, Any], number: int) -> list[list[float]]:
    """Returns the boxes in the image as it is loaded, turned by its EXIF orientation. Raises UserError where the stated
    width and height fit neither the stored nor the upright image, or do not tell which of them the boxes are for."""
    image = row["image"]
    if not boxes or (image.get("bytes") is None and is_url(str(image.get("path")))):  # nothing is downloaded for this
        return boxes
    try:
        stored = read_size(image)
    except MediaError:  # named when it is decoded
        return boxes
    stated = (row.get("width"), row.get("height"))
    if None in stated:
        if stored.orientation == 1:
            return boxes
        raise _orientation_problem(row, number, stored, "the row has no width and height, which would tell")
    fits_stored, fits_upright = stated == (stored.width, stored.height), stated == stored.upright
    if not fits_stored and not fits_upright:
        sizes = " or ".join(f"{width} x {height}" for width, height in dict.fromkeys([stored[:2], stored.upright]))
        message = f"row {number}: the annotation is for an image of another size than {name_of(image)} ({sizes})"
        value = " x ".join(f"{length:g}" if isinstance(length, float) else str(length) for length in stated)
        hint = "the image was resized or turned after it was annotated: use the image that was annotated"
        raise UserError(Problem(message, "data.columns.objects", value=value, hint=hint))
    if fits_stored and fits_upright and stored.orientation != 1:
        raise _orientation_problem(row, number, stored, "width and height are the same either way")
    return [stored.turn(box) for box in boxes] if fits_stored else boxes


def _orientation_problem(row: dict[str, Any], number: int, stored: StoredSize, reason: str) -> UserError:
    message = (
        f"row {number}: {name_of(row['image'])} is turned by its EXIF orientation ({stored.orientation}), and it is not "
        f"certain whether its boxes are for the stored or the upright image: {reason}"
    )
    hint = "save such images upright, without the EXIF orientation, and boxes to match"
    return UserError(Problem(message, "data.columns.objects", hint=hint))
