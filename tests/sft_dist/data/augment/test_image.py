"""Pictures with one known rectangle, so that where it is after a change can be seen in the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sft_dist.data.augment.image import VISIBLE, augment, cut, cutmix, mixup
from sft_dist.recipe.augment import ImageAugment

HEIGHT, WIDTH = 60, 80
BOX = (20, 10, 30, 25)  # x, y, width, height
EVERYTHING = ImageAugment(flip=0.5, crop=0.4, rotate=30.0, color=0.3, blur=0.5, erase=0.5)
SEEDS = range(30)


def scene() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A black picture with a white rectangle, its box, and its mask (1 in the rectangle)."""
    x, y, width, height = BOX
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[y : y + height, x : x + width] = 255
    return Image.fromarray(pixels), np.array([BOX], dtype=float), (pixels[..., 0] > 0).astype(np.int64)


def seen(white: np.ndarray) -> tuple[int, int, int, int]:
    """x, y, width, height of what is true."""
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    return columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1


def one(settings: ImageAugment, seed: int):
    image, boxes, mask = scene()
    return augment(image, settings, np.random.default_rng(seed), boxes, mask)


@pytest.mark.parametrize(
    "settings",
    [ImageAugment(flip=1.0), ImageAugment(flip=0.0, crop=0.3), ImageAugment(flip=0.5, crop=0.5)],
    ids=["flip", "crop", "both"],
)
def test_the_box_and_the_mask_are_exactly_where_the_object_is(settings):
    changed = 0
    for seed in SEEDS:
        result = one(settings, seed)
        white = result.image[..., 0] > 127
        np.testing.assert_array_equal(result.mask == 1, white)
        assert result.mask.shape == result.image.shape[:2]
        if len(result.boxes):
            assert result.boxes[0] == pytest.approx(seen(white), abs=1e-4)
        else:
            assert white.sum() < VISIBLE * BOX[2] * BOX[3]
        changed += not np.array_equal(result.image, np.asarray(scene()[0]))
    assert changed > 10


def test_a_rotated_object_stays_in_its_box_and_under_its_mask():
    for seed in SEEDS:
        result = one(ImageAugment(flip=0.0, rotate=40.0), seed)
        white = result.image[..., 0] > 127
        assert (
            (result.mask == 1) ^ white
        ).mean() < 0.02  # the edge, where the picture is interpolated and the mask not
        x, y, width, height = seen(white)
        left, top, box_width, box_height = result.boxes[0]
        assert left <= x + 1
        assert top <= y + 1
        assert left + box_width >= x + width - 1
        assert top + box_height >= y + height - 1


def test_what_rotation_brings_in_is_left_out_of_the_loss_and_classes_are_never_mixed():
    image, _, mask = scene()
    result = augment(
        image, ImageAugment(flip=0.0, rotate=45.0), np.random.default_rng(3), mask=mask * 200, ignore_index=7
    )
    assert set(np.unique(result.mask)) == {0, 7, 200}
    assert result.mask[0, 0] == 7


def test_boxes_are_cut_to_the_picture_and_dropped_when_little_of_them_is_left():
    boxes = np.array([[-10, -10, 20, 20], [70, 50, 40, 40], [-9, 0, 10, 10], [10, 10, 5, 5], [3, 3, 0, 4]], dtype=float)
    inside, kept = cut(boxes, WIDTH, HEIGHT)
    assert kept.tolist() == [3]
    assert inside.tolist() == [[10, 10, 5, 5]]
    inside, kept = cut(np.array([[-5.0, 55, 10, 10], [75, 0, 10, 10]]), WIDTH, HEIGHT)
    assert kept.tolist() == [1]
    assert inside.tolist() == [[75, 0, 5, 10]]


def test_kept_names_the_boxes_that_remain():
    image, _, _ = scene()
    boxes = np.array([[0, 0, 8, 8], BOX, [72, 52, 8, 8]], dtype=float)
    several = [augment(image, ImageAugment(flip=0.0, crop=0.4), np.random.default_rng(s), boxes) for s in SEEDS]
    assert any(len(result.kept) < 3 for result in several)
    for result in several:
        for number, box in zip(result.kept, result.boxes, strict=True):
            if number == 1:
                assert box == pytest.approx(seen(result.image[..., 0] > 127), abs=1e-4)


def test_a_picture_without_boxes_is_changed_like_any_other():
    result = augment(scene()[0], EVERYTHING, np.random.default_rng(0), np.zeros((0, 4)))
    assert result.boxes.shape == (0, 4)
    assert result.kept.shape == (0,)
    assert result.mask is None


def test_equal_generators_give_equal_pictures_whatever_was_made_before():
    first = [one(EVERYTHING, seed) for seed in SEEDS]
    again = {seed: one(EVERYTHING, seed) for seed in reversed(SEEDS)}
    for seed in SEEDS:
        np.testing.assert_array_equal(first[seed].image, again[seed].image)
        np.testing.assert_array_equal(first[seed].mask, again[seed].mask)
        np.testing.assert_array_equal(first[seed].boxes, again[seed].boxes)
    assert len({result.image.tobytes() for result in first}) == len(SEEDS)


def test_the_steps_are_drawn_apart_from_each_other():
    """One seed for all of them would flip, blur and erase the same pictures."""
    settings = ImageAugment(flip=0.5, erase=0.5)
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[0, 0] = 9  # tells a flip; erasing paints random colours
    found = set()
    for seed in range(40):
        result = augment(Image.fromarray(pixels), settings, np.random.default_rng(seed)).image
        found.add((bool(result[0, -1, 0] == 9), bool((result > 9).any())))
    assert found == {(False, False), (False, True), (True, False), (True, True)}


def test_a_crop_keeps_the_share_of_the_area_that_was_asked_for():
    image, _, _ = scene()
    for seed in SEEDS:
        result = augment(image, ImageAugment(flip=0.0, crop=0.5), np.random.default_rng(seed))
        assert 0.5 - 0.03 <= result.image.shape[0] * result.image.shape[1] / (HEIGHT * WIDTH) <= 1


def test_mixup_mixes_pictures_and_targets_by_one_share():
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 8, 8)
    targets = torch.eye(4)
    shares = set()
    for seed in SEEDS:
        mixed, soft = mixup(images, targets, 0.8, np.random.default_rng(seed))
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(4))
        torch.testing.assert_close(mixed[:, 0, 0, 0], soft @ torch.arange(4.0))
        shares |= {round(share, 4) for share in soft.flatten().tolist()}
    assert len(shares) > len(SEEDS)


def test_cutmix_mixes_targets_by_the_area_that_is_pasted():
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 16, 16)
    pasted = 0
    for seed in SEEDS:
        mixed, soft = cutmix(images, torch.eye(4), 1.0, np.random.default_rng(seed))
        for picture, target in zip(mixed, soft, strict=True):
            shares = torch.tensor([(picture == number).float().mean() for number in range(4)])
            torch.testing.assert_close(shares, target)
            pasted += bool((target > 0).sum() > 1)
    assert pasted > 20
    torch.testing.assert_close(images[1], torch.ones(3, 16, 16))  # what was given is not changed
