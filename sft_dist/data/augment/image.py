"""Random changes to training images with Pillow and numpy. Boxes and masks follow exactly, and only `rng` decides.

mixup and cutmix work on the tensors of a micro-batch, since they need pairs. Why no augmentation library: decision 0011.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from sft_dist.recipe.augment import ImageAugment

VISIBLE = 0.3  # an object of which less than this share remains after a change is no longer labelled
ERASED = (0.1, 0.4)  # sides of the erased part, as shares of the image's
SIDES = (3 / 4, 4 / 3)  # width to height of a crop, relative to the image's (arXiv 1409.4842)
SIGMA = (0.5, 3.0)  # standard deviation of the blur in pixels


@dataclass(frozen=True)
class Augmented:
    image: np.ndarray  # (height, width, 3) uint8
    boxes: np.ndarray  # (boxes, 4) x, y, width, height in pixels, inside the image
    box_indices: np.ndarray  # (boxes,) their indices among the boxes before
    mask: np.ndarray | None  # (height, width) class numbers, as uint8 until the end


def augment_image(
    image: Image.Image,
    settings: ImageAugment,
    rng: np.random.Generator,
    boxes: np.ndarray | None = None,  # (boxes, 4) x, y, width, height in pixels
    mask: np.ndarray | None = None,  # (height, width) class numbers, at most 255
    ignore_index: int = 255,
) -> Augmented:
    """Crops, flips, rotates, changes colours, blurs and erases, in this order.

    Boxes are clipped to the image, and dropped when too little of them remains. A rotated box becomes the upright box around
    it. Pixels of the mask are never blended; where rotation brings in new pixels, they are `ignore_index`.
    """
    boxes = np.zeros((0, 4)) if boxes is None else np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    mask = None if mask is None else mask.astype(np.uint8)
    example = Augmented(np.asarray(image), boxes, np.arange(len(boxes)), mask)
    example = _crop(example, settings.crop, rng)
    if rng.random() < settings.flip:
        example = _flip(example)
    if settings.rotate:
        example = rotate(example, rng.uniform(-settings.rotate, settings.rotate), ignore_index)
    if settings.color or settings.blur:
        image = _change_colors(Image.fromarray(example.image), settings.color, rng)
        example = replace(example, image=np.asarray(_blur(image, settings.blur, rng)))
    if rng.random() < settings.erase:
        example = _erase(example, rng)
    return replace(example, mask=None if example.mask is None else example.mask.astype(np.int64))


def clip_boxes(boxes: np.ndarray, width: int, height: int, visible: float = VISIBLE) -> tuple[np.ndarray, np.ndarray]:
    """(boxes, 4) x, y, width, height -> those of which enough is inside the image, clipped to it, and their indices."""
    low = np.clip(boxes[:, :2], 0, [width, height])
    high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, [width, height])
    inside = np.concatenate([low, high - low], axis=1)
    return _keep_visible(boxes, inside, visible)


def _keep_visible(boxes: np.ndarray, inside: np.ndarray, visible: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is inside of those boxes of which this share of the area is, and their indices."""
    area, full_area = inside[:, 2] * inside[:, 3], boxes[:, 2] * boxes[:, 3]
    indices = np.flatnonzero((area > 0) & (area >= visible * full_area))
    return inside[indices], indices


def _with_boxes(example: Augmented, boxes: np.ndarray, indices: np.ndarray) -> Augmented:
    return replace(example, boxes=boxes, box_indices=example.box_indices[indices])


def _crop(example: Augmented, smallest: float, rng: np.random.Generator) -> Augmented:
    image_height, image_width = example.image.shape[:2]
    left, top, width, height = _draw_crop(image_height, image_width, smallest, rng)
    region = np.s_[top : top + height, left : left + width]
    boxes, indices = clip_boxes(example.boxes - [left, top, 0, 0], width, height)
    mask = None if example.mask is None else example.mask[region]
    return _with_boxes(replace(example, image=example.image[region], mask=mask), boxes, indices)


def _draw_crop(height: int, width: int, smallest: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Returns left, top, width, height of a part with at least the share `smallest` of the area."""
    share = rng.uniform(smallest, 1.0)
    # The longest side there can be bounds the shape, so that the area is what was drawn.
    narrowest, widest = max(SIDES[0], share), min(SIDES[1], 1 / share)
    ratio = np.exp(rng.uniform(np.log(narrowest), np.log(widest)))
    new_height = min(height, max(1, round(height * np.sqrt(share / ratio))))
    new_width = min(width, max(1, round(width * np.sqrt(share * ratio))))
    top, left = (int(rng.integers(room + 1)) for room in (height - new_height, width - new_width))
    return left, top, new_width, new_height


def _flip(example: Augmented) -> Augmented:
    """Mirrors left to right."""
    boxes = example.boxes.copy()
    boxes[:, 0] = example.image.shape[1] - boxes[:, 0] - boxes[:, 2]
    mask = None if example.mask is None else example.mask[:, ::-1]
    return replace(example, image=example.image[:, ::-1], boxes=boxes, mask=mask)


def rotate(example: Augmented, degrees: float, ignore_index: int) -> Augmented:
    """Rotates counter-clockwise about the centre, within the same width and height."""
    height, width = example.image.shape[:2]
    image = np.asarray(Image.fromarray(example.image).rotate(degrees, Image.Resampling.BILINEAR))
    mask = example.mask
    if mask is not None:
        mask = np.asarray(Image.fromarray(mask).rotate(degrees, Image.Resampling.NEAREST, fillcolor=ignore_index))
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    center = np.array([width, height]) / 2
    size = example.boxes[:, 2:]
    from_center = example.boxes[:, :2] + size / 2 - center
    # y points down, so counter-clockwise takes (1, 0) to (cos, -sin).
    middle = center + from_center @ np.array([[cosine, -sine], [sine, cosine]])
    upright = size @ np.abs([[cosine, sine], [sine, cosine]])
    boxes, indices = clip_boxes(np.concatenate([middle - upright / 2, upright], axis=1), width, height)
    return _with_boxes(replace(example, image=image, mask=mask), boxes, indices)


def _change_colors(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by factors of 1 - strength to 1 + strength, in random order."""
    if strength:
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        factors = rng.uniform(1 - strength, 1 + strength, size=3)
        for index in rng.permutation(3):
            image = enhancers[index](image).enhance(float(factors[index]))
    return image


def _blur(image: Image.Image, probability: float, rng: np.random.Generator) -> Image.Image:
    if rng.random() < probability:
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(*SIGMA)))
    return image


def _erase(example: Augmented, rng: np.random.Generator) -> Augmented:
    """Fills a rectangle with random pixels (arXiv 1708.04896). The mask keeps the classes of what is hidden; a box shrinks
    to what can be seen of it."""
    height, width = example.image.shape[:2]
    erased_height, erased_width = (max(1, int(side * rng.uniform(*ERASED))) for side in (height, width))
    top, left = (int(rng.integers(room + 1)) for room in (height - erased_height, width - erased_width))
    image = example.image.copy()
    image[top : top + erased_height, left : left + erased_width] = rng.integers(
        256, size=(erased_height, erased_width, 3), dtype=np.uint8
    )
    visible = uncover_boxes(example.boxes, (left, top, erased_width, erased_height))
    return _with_boxes(replace(example, image=image), *_keep_visible(example.boxes, visible, VISIBLE))


def uncover_boxes(boxes: np.ndarray, erased: tuple[int, int, int, int]) -> np.ndarray:
    """(boxes, 4) x, y, width, height -> the upright boxes around what an erased rectangle (x, y, width, height) leaves of
    them: smaller where it covers a whole side, of no area where it covers all."""
    low, high = boxes[:, :2].copy(), boxes[:, :2] + boxes[:, 2:]
    start, end = np.array(erased[:2]), np.array(erased[:2]) + erased[2:]
    spans = (start <= low) & (end >= high)  # (boxes, 2): along x, along y
    for axis in (0, 1):
        across = spans[:, 1 - axis]
        from_low = across & (start[axis] <= low[:, axis]) & (end[axis] > low[:, axis])
        from_high = across & (end[axis] >= high[:, axis]) & (start[axis] < high[:, axis])
        new_low = np.where(from_low, np.minimum(end[axis], high[:, axis]), low[:, axis])
        new_high = np.where(from_high & ~from_low, start[axis], high[:, axis])
        low[:, axis], high[:, axis] = new_low, new_high
    return np.concatenate([low, high - low], axis=1)


def mixup(
    images: Tensor,  # (batch, channels, height, width)
    targets: Tensor,  # (batch, classes) shares that add up to one
    alpha: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Blends each image and its target with another image's, by one share drawn from Beta(alpha, alpha) (Zhang et al. 2017,
    arXiv 1710.09412)."""
    partner = torch.from_numpy(rng.permutation(len(images)))
    share = float(rng.beta(alpha, alpha))
    return images.lerp(images[partner], 1 - share), targets.lerp(targets[partner], 1 - share)


def cutmix(
    images: Tensor,  # (batch, channels, height, width)
    targets: Tensor,  # (batch, classes) shares that add up to one
    alpha: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Pastes a part of another image into each; the targets are mixed by area (Yun et al. 2019, arXiv 1905.04899)."""
    partner = torch.from_numpy(rng.permutation(len(images)))
    height, width = images.shape[-2:]
    side = np.sqrt(1 - rng.beta(alpha, alpha))
    middle_y, middle_x = rng.integers(height), rng.integers(width)
    top, bottom = np.clip([middle_y - height * side / 2, middle_y + height * side / 2], 0, height).astype(int)
    start, end = np.clip([middle_x - width * side / 2, middle_x + width * side / 2], 0, width).astype(int)
    mixed = images.clone()
    mixed[..., top:bottom, start:end] = images[partner][..., top:bottom, start:end]
    pasted = (bottom - top) * (end - start) / (height * width)  # the part may have been cut off by the edge
    return mixed, targets.lerp(targets[partner], float(pasted))
