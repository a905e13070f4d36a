"""Random changes to training pictures, by albumentations; boxes and masks follow, and nothing but `rng` decides.

mixup and cutmix work on the tensors of a micro-batch, since they need pairs.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sft_dist.recipe.augment import ImageAugment

if TYPE_CHECKING:
    from PIL.Image import Image

VISIBLE = 0.3  # an object of which less than this share remains after a change is no longer labelled
ERASED = (0.1, 0.4)  # sides of the part painted over, as shares of the picture's
SIDES = (3 / 4, 4 / 3)  # width to height of a crop, relative to the picture's (arXiv 1409.4842)


@dataclass(frozen=True)
class Augmented:
    image: np.ndarray  # (height, width, 3) uint8
    boxes: np.ndarray  # (boxes, 4) x, y, width, height in pixels, inside the picture
    kept: np.ndarray  # (boxes,) which of the boxes given these are
    mask: np.ndarray | None  # (height, width) class numbers


def augment(
    image: Image,
    settings: ImageAugment,
    rng: np.random.Generator,
    boxes: np.ndarray | None = None,  # (boxes, 4) x, y, width, height in pixels
    mask: np.ndarray | None = None,  # (height, width) class numbers, at most 255
    ignore_index: int = 255,
) -> Augmented:
    """Crop, flip, rotate, colours, blur, erase, in this order.

    Boxes are cut to the picture, and left out when too little of them remains. A rotated box becomes the upright one around
    it. Pixels of the mask are never mixed; where the picture is new, they are `ignore_index`.
    """
    pixels = np.asarray(image)
    boxes = np.zeros((0, 4)) if boxes is None else np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    top, left, height, width = _crop(pixels.shape[0], pixels.shape[1], settings.crop, rng)
    pixels = pixels[top : top + height, left : left + width]
    if mask is not None:
        mask = mask[top : top + height, left : left + width]
    boxes, kept = cut(boxes - [left, top, 0, 0], width, height)

    pipeline = _pipeline(settings, ignore_index)
    # One generator for all steps: a seed, which is what albumentations has for this, would start each of them the same, so
    # that a picture is either changed in every way or in none.
    seeds = rng.integers(2**63, size=2)
    pipeline.set_random_state(np.random.default_rng(seeds[0]), random.Random(int(seeds[1])))
    inputs: dict[str, Any] = {"image": np.ascontiguousarray(pixels), "bboxes": boxes, "kept": np.arange(len(boxes))}
    if mask is not None:
        inputs["mask"] = np.ascontiguousarray(mask, dtype=np.uint8)
    changed = pipeline(**inputs)
    remaining = np.asarray(changed["kept"], dtype=np.int64).reshape(-1)
    return Augmented(
        image=changed["image"],
        boxes=np.asarray(changed["bboxes"], dtype=np.float64).reshape(-1, 4),
        kept=kept[remaining],
        mask=None if mask is None else changed["mask"].astype(np.int64),
    )


def cut(boxes: np.ndarray, width: int, height: int, visible: float = VISIBLE) -> tuple[np.ndarray, np.ndarray]:
    """(boxes, 4) x, y, width, height -> those of which enough is inside the picture, cut to it, and their numbers."""
    low = np.clip(boxes[:, :2], 0, [width, height])
    high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, [width, height])
    inside = np.concatenate([low, high - low], axis=1)
    area, whole = inside[:, 2] * inside[:, 3], boxes[:, 2] * boxes[:, 3]
    kept = np.flatnonzero((area > 0) & (area >= visible * whole))
    return inside[kept], kept


def _crop(height: int, width: int, smallest: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width of a part with at least `smallest` of the area."""
    share = rng.uniform(smallest, 1.0)
    # The longest side there can be bounds the shape, so that the area is what was drawn.
    wide, tall = max(SIDES[0], share), min(SIDES[1], 1 / share)
    ratio = np.exp(rng.uniform(np.log(wide), np.log(tall)))
    new_height = min(height, max(1, round(height * np.sqrt(share / ratio))))
    new_width = min(width, max(1, round(width * np.sqrt(share * ratio))))
    top, left = (int(rng.integers(room + 1)) for room in (height - new_height, width - new_width))
    return top, left, new_height, new_width


@lru_cache(maxsize=8)
def _pipeline(settings: ImageAugment, ignore_index: int) -> Any:
    """What follows the crop. Building it takes as long as running it, so it is kept."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask a server for its newest version
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # pictures are small, and each rank and worker has its share of the cores already
    steps: list[Any] = [albumentations.HorizontalFlip(p=settings.flip)]
    if settings.rotate:
        steps.append(
            albumentations.Rotate(
                (-settings.rotate, settings.rotate),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                border_mode=cv2.BORDER_CONSTANT,
                fill=0,
                fill_mask=ignore_index,
                p=1.0,
            )
        )
    if settings.color:
        strength = (1 - settings.color, 1 + settings.color)
        steps.append(albumentations.ColorJitter(strength, strength, strength, hue=(0.0, 0.0), p=1.0))
    if settings.blur:
        steps.append(albumentations.GaussianBlur(p=settings.blur))
    if settings.erase:
        # arXiv 1708.04896, with one of its fillings; the mask keeps the class of what is hidden, a box what can be seen.
        steps.append(
            albumentations.CoarseDropout((1, 1), ERASED, ERASED, fill="random", fill_mask=None, p=settings.erase)
        )
    boxes = albumentations.BboxParams(
        "coco", label_fields=["kept"], min_visibility=VISIBLE, clip=True, filter_invalid_bboxes=True
    )
    return albumentations.Compose(steps, bbox_params=boxes)


def mixup(
    images: Tensor,  # (batch, channels, height, width)
    targets: Tensor,  # (batch, classes) shares that add up to one
    alpha: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Each picture and its target is a weighted mean with those of another, by one share drawn from Beta(alpha, alpha)
    (Zhang et al. 2017, arXiv 1710.09412)."""
    other = torch.from_numpy(rng.permutation(len(images)))
    share = float(rng.beta(alpha, alpha))
    return images.lerp(images[other], 1 - share), targets.lerp(targets[other], 1 - share)


def cutmix(
    images: Tensor,  # (batch, channels, height, width)
    targets: Tensor,  # (batch, classes) shares that add up to one
    alpha: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """A part of another picture is pasted in; the targets are mixed by area (Yun et al. 2019, arXiv 1905.04899)."""
    other = torch.from_numpy(rng.permutation(len(images)))
    height, width = images.shape[-2:]
    side = np.sqrt(1 - rng.beta(alpha, alpha))
    middle_y, middle_x = rng.integers(height), rng.integers(width)
    top, bottom = np.clip([middle_y - height * side / 2, middle_y + height * side / 2], 0, height).astype(int)
    left, right = np.clip([middle_x - width * side / 2, middle_x + width * side / 2], 0, width).astype(int)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[other][..., top:bottom, left:right]
    pasted = (bottom - top) * (right - left) / (height * width)  # the part may have been cut off by the edge
    return mixed, targets.lerp(targets[other], float(pasted))
