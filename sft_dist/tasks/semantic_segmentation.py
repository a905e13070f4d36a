"""Semantic segmentation: a class for every pixel of an image."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Features, List, Value
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from sft_dist.data.augment.image import augment_image
from sft_dist.data.images import content
from sft_dist.data.media import MediaError, load_image, load_mask
from sft_dist.losses.classification import CrossEntropy, build_loss, weights_of_counts
from sft_dist.losses.segmentation import OVERLAPS, PixelLoss, PixelTargets, QueryLoss
from sft_dist.metrics.vision import confusion, mask_scores
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import OverlapLoss, Recipe
from sft_dist.recipe.tasks.semantic_segmentation import SemanticSegmentationTask
from sft_dist.tasks.base import BaseTask, Rngs
from sft_dist.tasks.classes import unknown_classes
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

log = logging.getLogger("sft_dist")

# Models that predict masks with classes instead of a class for each pixel. Only the loss of QUERIES is implemented.
QUERIES = ("mask2former",)
MOST_CLASSES = 256  # masks are handled in bytes
WHITE = 255  # the second class of a black and white mask
OTHER_QUERIES = ("maskformer", "oneformer", "eomt", "eomt_dinov3", "videomt")


class SemanticSegmentation(BaseTask):
    """Pixel values of a mask are class numbers, in the order of the labels.

    Every image is resized to one size, and so is its mask in training; evaluation uses the mask at its original size.
    Auxiliary heads (UPerNet) are disabled: only the model's own loss uses their output.
    """

    pipeline_tag = "image-segmentation"
    input_roles = ("image",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.task, SemanticSegmentationTask)
        self.ignore_index = recipe.task.ignore_index
        self.augment = recipe.data.augment.image
        self.row_features = Features({"image": IMAGE_FEATURE, "mask": IMAGE_FEATURE, "pixels": List(Value("int64"))})
        self.encoded_features = Features({**self.row_features, "target_pixels": List(Value("int64"))})
        self.row_features = Features({**self.row_features, "num_ignored": Value("int64")})
        self.model_config: PreTrainedConfig | None = None  # of the model that was built

    # ── rows and examples ───────────────────────────────────────────────────────────────────────────────────────────
    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        """Opens the mask and counts the pixels of each class. Raises UserError."""
        if not row["image"] or not row["mask"]:
            return "no image" if not row["image"] else "no mask"
        require_readable_path(row, "image", number)
        try:
            mask = self._class_numbers(row["mask"])
        except MediaError as error:
            raise UserError(Problem(f"row {number}: {error}", "data.columns.mask")) from None
        values = mask[mask != self.ignore_index]
        if not len(values):
            return "no labelled pixel"
        named = len(self.recipe.data.labels) if self.recipe.data.labels else MOST_CLASSES
        if values.min() < 0 or values.max() >= named:
            message = f"row {number}: the mask has a value that no class has"
            hint = f"values are numbers of classes, from 0; {self.ignore_index} (task.ignore_index) means none"
            valid = tuple(f"{i} ({label})" for i, label in enumerate((self.recipe.data.labels or [])[:20]))
            outlier = values.min() if values.min() < 0 else values.max()
            raise UserError(Problem(message, "data.labels", value=str(outlier), valid=valid, hint=hint))
        return {
            "image": row["image"],
            "mask": row["mask"],
            "pixels": np.bincount(values).tolist(),
            "num_ignored": mask.size - len(values),
        }

    def identity(self, row: dict[str, Any]) -> bytes:
        return content(row["image"])

    def learn_labels(self, train: Rows) -> None:
        """Names classes by their numbers when the recipe has no names. Raises UserError where the ignored value may be a
        class."""
        counts = pixels_of_classes(train.column("pixels"))
        has_ignored = any(train.column("num_ignored"))
        if problem := mask_problem(counts, self.recipe.data.labels, self.ignore_index if has_ignored else None):
            raise UserError(problem)
        self.labels = self.labels or [str(number) for number in range(len(counts))]

    def load_processor(self, source: str, **options: Any) -> Any:
        processor = load_image_processor(source, **options)
        resize_without_cropping(processor)
        return processor

    def encode(self, rows: dict[str, list[Any]], processor: Any) -> dict[str, list[Any]]:
        columns = {"image": rows["image"], "length": [1] * len(rows["image"])}
        if "mask" not in rows:
            return columns
        num_classes = max(map(len, rows["pixels"]))
        if num_classes > len(self.labels):
            raise UserError(
                unknown_classes([str(number) for number in range(len(self.labels), num_classes)], self.labels)
            )
        return columns | {
            "mask": rows["mask"],
            "pixels": rows["pixels"],
            "target_pixels": self._target_pixels(rows["mask"], processor),
        }

    def _target_pixels(self, masks: list[Any], processor: Any) -> list[list[int]]:
        """Pixels of each class in each mask at the size of the model's inputs."""

        @cache
        def input_size(width: int, height: int) -> torch.Size:
            return pixels_of(processor, [Image.new("RGB", (width, height))])["pixel_values"].shape[-2:]

        counts = []
        for mask in map(self._class_numbers, masks):
            resized = _resized(mask, *input_size(mask.shape[1], mask.shape[0]))
            counts.append(np.bincount(resized[resized != self.ignore_index]).tolist())
        return counts

    def collate(
        self, rows: list[dict[str, Any]], processor: Any, rngs: Rngs | None
    ) -> tuple[dict[str, Any], PixelTargets | None]:
        images = [load_image(row["image"]) for row in rows]
        masks: list[Any] = (
            [self._mask(row, image) for row, image in zip(rows, images, strict=True)] if "mask" in rows[0] else []
        )
        if rngs is not None and self.augment is not None:
            augmented = [
                augment_image(image, self.augment, rng, mask=mask, ignore_index=self.ignore_index)
                for image, mask, rng in zip(images, masks, rngs, strict=True)
            ]
            images, masks = [Image.fromarray(pair.image) for pair in augmented], [pair.mask for pair in augmented]
        inputs: dict[str, Any] = pixels_of(processor, images)
        inputs["sizes"] = torch.tensor([[image.height, image.width] for image in images])
        if not masks:
            return inputs, None
        if rngs is None:
            # A prediction is a confusion matrix, so `predict` needs the true mask: the class maps of a whole split do not
            # fit in memory.
            inputs["masks"] = [torch.from_numpy(mask.astype(np.uint8)) for mask in masks]
        resized = np.stack([_resized(mask, *inputs["pixel_values"].shape[-2:]) for mask in masks])
        pixels = per_class((row["target_pixels"] for row in rows), len(self.labels))
        return inputs, PixelTargets(torch.from_numpy(resized.astype(np.int64)), torch.from_numpy(pixels))

    def _mask(self, row: dict[str, Any], image: Image.Image) -> np.ndarray:
        mask = self._class_numbers(row["mask"])
        if mask.shape != (image.height, image.width):
            sizes = f"{mask.shape[1]} x {mask.shape[0]}, the image {image.width} x {image.height}"
            raise ValueError(f"the mask has another size than its image: {sizes}")
        return mask

    def _class_numbers(self, stored_mask: Any) -> np.ndarray:
        return class_numbers(load_mask(stored_mask), self.recipe.data.labels, self.ignore_index)

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        """Builds the model. Raises UserError for a model whose loss is not implemented."""
        code = {key: options[key] for key in ("trust_remote_code", "code_revision") if key in options}
        kind = AutoConfig.from_pretrained(folder, revision=revision, **code).model_type
        if kind in OTHER_QUERIES:
            message = "its loss cannot be written as a sum over images, which training on any number of processes needs"
            raise UserError(Problem(message, "model.path", value=kind, valid=("segformer", "upernet", *QUERIES)))
        auto = AutoModelForUniversalSegmentation if kind in QUERIES else AutoModelForSemanticSegmentation
        settings = {"use_auxiliary_head": False}
        model = load_pretrained(auto, folder, revision, config, self.labels, settings, **options)
        if kind in QUERIES:
            model.config.output_auxiliary_logits = (
                model.config.use_auxiliary_loss
            )  # without labels it keeps them to itself
        for name, weight in model.named_parameters():
            if ".swin.layernorm." in f".{name}":  # a last norm that nothing uses: processes would wait for its gradient
                weight.requires_grad_(False)
        self.model_config = model.config
        return model

    def build_loss(self, train: Examples) -> PixelLoss | QueryLoss:
        config, loss = self.model_config or config_of(self.recipe, self.labels), self.recipe.train.loss
        if config.model_type in QUERIES:
            if loss is not None:
                message = "this model has a matching loss of its own"
                raise UserError(Problem(message, "train.loss", value=loss.name, hint="remove it"))
            return QueryLoss(config, self.ignore_index)
        if isinstance(loss, OverlapLoss):
            return PixelLoss(CrossEntropy(), self.ignore_index, 1 - loss.cross_entropy, OVERLAPS[loss.name])
        if getattr(loss, "class_weights", None) == "balanced":
            loss = loss.model_copy(update={"class_weights": self._balanced(train)})  # type: ignore[union-attr]
        return PixelLoss(build_loss(loss, "single-label", self.labels, _no_balanced_targets), self.ignore_index)  # type: ignore[arg-type]

    def _balanced(self, train: Examples) -> list[float]:
        """Balanced class weights, counted in pixels."""
        return weights_of_counts(per_class(train.column("pixels"), len(self.labels)).sum(axis=0)).tolist()

    def weights(self, loss: PixelLoss | QueryLoss, examples: Examples) -> np.ndarray:
        column = "pixels" if isinstance(loss, QueryLoss) else "target_pixels"
        return loss.weights(per_class(examples.column(column), len(self.labels)))

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        return model(pixel_values=inputs["pixel_values"])

    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Any, processor: Any) -> list[Any]:
        """Returns a confusion matrix where there is a true mask, otherwise the class map."""
        maps = [
            F.interpolate(scores[None], tuple(size.tolist()), mode="bilinear", align_corners=False)[0].argmax(dim=0)
            for scores, size in zip(class_scores(outputs), inputs["sizes"], strict=True)
        ]
        predicted = [class_map.to("cpu", torch.uint8).numpy() for class_map in maps]
        if "masks" not in inputs:
            return predicted
        truth = [mask.cpu().numpy() for mask in inputs["masks"]]
        return [confusion(*pair, len(self.labels), self.ignore_index) for pair in zip(predicted, truth, strict=True)]

    # ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def references(self, examples: Examples) -> list[Any]:
        return [None] * len(examples)  # a prediction is a confusion matrix, which holds the truth

    def score(self, predictions: list[Any], examples: Examples, processor: Any) -> dict[str, Any]:
        return mask_scores(np.sum(predictions, axis=0), self.labels)

    def describe(self, predictions: list[Any], processor: Any) -> list[dict[str, Any]]:
        """Returns each class's share of the image, and its pixels in COCO's compressed run-length encoding, which
        `pycocotools.mask.decode` reads."""
        from pycocotools import mask as coco

        descriptions = []
        for class_map in predictions:
            counts = np.bincount(class_map.reshape(-1), minlength=len(self.labels))
            classes = {self.labels[number]: number for number in np.argsort(-counts, kind="stable") if counts[number]}
            runs = {name: coco.encode(np.asfortranarray(class_map == number)) for name, number in classes.items()}
            descriptions.append(
                {
                    "shares": {name: float(counts[number] / class_map.size) for name, number in classes.items()},
                    "masks": {
                        name: {"size": run["size"], "counts": run["counts"].decode()} for name, run in runs.items()
                    },
                }
            )
        return descriptions


def class_numbers(mask: np.ndarray, labels: list[str] | None, ignore_index: int) -> np.ndarray:
    """The mask with 255 as class 1 where there are two named classes and it holds black and white alone; 255 must not be
    ignored."""
    if not labels or len(labels) != 2 or ignore_index == WHITE:
        return mask
    black_and_white = np.isin(mask, (0, WHITE, ignore_index)).all()
    return np.where(mask == WHITE, 1, mask) if black_and_white else mask


def per_class(rows: Iterable[list[int]], num_classes: int) -> np.ndarray:  # (masks, classes)
    """Pixels of each class in each mask; rows end with the last class that occurs."""
    return np.stack([np.pad(np.array(pixels, np.int64), (0, num_classes - len(pixels))) for pixels in rows])


def _resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))


def pixels_of_classes(rows: Iterable[list[int]]) -> np.ndarray:  # (classes,)
    """Sum over masks of the pixels of each class."""
    counts = np.zeros(MOST_CLASSES, dtype=np.int64)
    for pixels in rows:
        counts[: len(pixels)] += pixels
    return np.trim_zeros(counts, "b")


def mask_problem(
    counts: np.ndarray,  # (classes,) pixels in the training masks
    labels: list[str] | None,
    ignored: int | None,  # None: no pixel is ignored
) -> Problem | None:
    """What is wrong with the values of the training masks as a whole."""
    present = np.flatnonzero(counts).tolist()
    absent = [number for number in range(len(labels or [])) if number not in present]
    if ignored is not None and (
        len(present) == 1 or (len(absent) == 1 and absent[0] in (ignored, len(labels or []) - 1))
    ):
        label = f" ({labels[absent[0]]})" if labels and len(absent) == 1 else ""
        message = f"the masks hold {ignored}, which is ignored, and no pixel of {'a second' if len(present) == 1 else 'one'} class{label}"
        return Problem(message, "task.ignore_index", value=str(ignored), hint=_ignored_hint(present, labels, ignored))
    if len(present) < 2:
        message = f"at least two classes are needed, and every mask has the one value {', '.join(map(str, present))}"
        return Problem(message, "data.columns.mask")
    if not labels and len(present) < len(counts) / 2:
        message = (
            f"the masks hold {len(present)} values between 0 and {present[-1]}, most numbers between them are no class"
        )
        hint = (
            "classes are numbered 0, 1, 2, ...: renumber the masks, or name every class in data.labels; two named classes "
            "and task.ignore_index: 254 read masks of 0 and 255; many values near 0 and 255 come from JPEG or smooth resizing"
        )
        return Problem(message, "data.columns.mask", value=", ".join(map(str, present[:10])), hint=hint)
    return None


def _ignored_hint(present: list[int], labels: list[str] | None, ignored: int) -> str:
    outside = WHITE - 1 if ignored == WHITE else WHITE
    if ignored == WHITE and present == [0] and (not labels or len(labels) == 2):
        named = "" if labels else "name both classes in data.labels and "
        return f"{named}set task.ignore_index: {outside}: 0 and 255 are then the two classes"
    if labels and ignored < len(labels):
        return f"{ignored} is the number of a class: set task.ignore_index: {outside}"
    return (
        f"if {ignored} is a class, give it a number below the number of classes in the masks and set task.ignore_index: "
        f"{outside}; if it is not, remove the class that no mask holds from data.labels"
    )


def class_scores(outputs: Any) -> Tensor:  # (batch, classes, h, w)
    """Scores of each class at each pixel: logits, or the sum of mask probabilities weighted by the class of each query."""
    if "masks_queries_logits" not in outputs:
        return outputs.logits.float()
    classes = outputs.class_queries_logits.float().softmax(dim=-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", classes, outputs.masks_queries_logits.float().sigmoid())


def resize_without_cropping(processor: Any) -> None:
    """Sets one size for all images, without cropping or padding, so that image and mask stay aligned."""
    size = dict(getattr(processor, "crop_size", None) or {}) if getattr(processor, "do_center_crop", False) else {}
    size = {key: value for key, value in {**dict(processor.size), **size}.items() if value}
    shortest = size.get("shortest_edge")
    height, width = size.get("height") or shortest, size.get("width") or shortest
    if not height or not width:
        raise UserError(Problem("the image processor has no size to resize images to", "model.path", value=str(size)))  # fmt: skip
    if {**size, "height": height, "width": width} != size or getattr(processor, "do_center_crop", False):
        log.info("all images are resized to %d x %d, whatever their aspect ratio", width, height)
    processor.size = type(processor.size)(height=height, width=width)
    for setting in ("do_center_crop", "do_pad", "keep_aspect_ratio"):
        if getattr(processor, setting, None):
            setattr(processor, setting, False)


def _no_balanced_targets() -> np.ndarray:
    raise AssertionError("balanced weights are counted in pixels")
