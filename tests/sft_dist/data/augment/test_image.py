"""Pictures with one known rectangle, so that where it is after a change can be seen in the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sft_dist.data.augment.image import (
    VISIBLE,
    Augmented,
    augment_image,
    clip_boxes,
    cutmix,
    mixup,
    rotate,
    uncover_boxes,
)
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
    return augment_image(image, settings, np.random.default_rng(seed), boxes, mask)


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
    result = augment_image(
        image, ImageAugment(flip=0.0, rotate=45.0), np.random.default_rng(3), mask=mask * 200, ignore_index=7
    )
    assert set(np.unique(result.mask)) == {0, 7, 200}
    assert result.mask[0, 0] == 7


def test_boxes_are_cut_to_the_picture_and_dropped_when_little_of_them_is_left():
    boxes = np.array([[-10, -10, 20, 20], [70, 50, 40, 40], [-9, 0, 10, 10], [10, 10, 5, 5], [3, 3, 0, 4]], dtype=float)
    inside, kept = clip_boxes(boxes, WIDTH, HEIGHT)
    assert kept.tolist() == [3]
    assert inside.tolist() == [[10, 10, 5, 5]]
    inside, kept = clip_boxes(np.array([[-5.0, 55, 10, 10], [75, 0, 10, 10]]), WIDTH, HEIGHT)
    assert kept.tolist() == [1]
    assert inside.tolist() == [[75, 0, 5, 10]]


def test_kept_names_the_boxes_that_remain():
    image, _, _ = scene()
    boxes = np.array([[0, 0, 8, 8], BOX, [72, 52, 8, 8]], dtype=float)
    several = [augment_image(image, ImageAugment(flip=0.0, crop=0.4), np.random.default_rng(s), boxes) for s in SEEDS]
    assert any(len(result.box_indices) < 3 for result in several)
    for result in several:
        for number, box in zip(result.box_indices, result.boxes, strict=True):
            if number == 1:
                assert box == pytest.approx(seen(result.image[..., 0] > 127), abs=1e-4)


def test_a_picture_without_boxes_is_changed_like_any_other():
    result = augment_image(scene()[0], EVERYTHING, np.random.default_rng(0), np.zeros((0, 4)))
    assert result.boxes.shape == (0, 4)
    assert result.box_indices.shape == (0,)
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
        result = augment_image(Image.fromarray(pixels), settings, np.random.default_rng(seed)).image
        found.add((bool(result[0, -1, 0] == 9), bool((result > 9).any())))
    assert found == {(False, False), (False, True), (True, False), (True, True)}


def test_a_crop_keeps_the_share_of_the_area_that_was_asked_for():
    image, _, _ = scene()
    for seed in SEEDS:
        result = augment_image(image, ImageAugment(flip=0.0, crop=0.5), np.random.default_rng(seed))
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


# ── positions computed by hand ──────────────────────────────────────────────────────────────────────────────────────
def numbered(boxes: list[list[float]], height: int = 4, width: int = 6) -> Augmented:
    """An image and a mask in which every pixel has its own number."""
    numbers = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return Augmented(np.stack([numbers] * 3, axis=-1), np.array(boxes, dtype=float), np.arange(len(boxes)), numbers)


def test_a_quarter_turn_takes_pixels_and_boxes_to_the_same_places():
    turned = rotate(numbered([[1, 0, 2, 1], [3, 2, 1, 2]], width=4), 90.0, 255)
    expected = np.rot90(np.arange(16).reshape(4, 4))
    np.testing.assert_array_equal(turned.mask, expected)
    np.testing.assert_array_equal(turned.image[..., 0], expected)
    assert turned.boxes == pytest.approx(np.array([[0, 1, 1, 2], [2, 0, 2, 1]]))
    assert turned.box_indices.tolist() == [0, 1]


def test_a_half_turn_of_a_wide_image():
    turned = rotate(numbered([[0, 0, 2, 1]]), 180.0, 255)
    np.testing.assert_array_equal(turned.mask, np.arange(24).reshape(4, 6)[::-1, ::-1])
    assert turned.boxes == pytest.approx(np.array([[4, 3, 2, 1]]))


def test_a_box_turned_by_45_degrees_is_the_upright_one_around_it():
    side = np.sqrt(2)
    turned = rotate(numbered([[9, 9, 2, 2], [13, 9, 2, 2]], 20, 20), 45.0, 255)
    # The centre of the second box is 4 to the right of the image's, so it goes 4 / sqrt(2) to the right and up.
    away = 4 / side
    expected = [[10 - side, 10 - side, 2 * side, 2 * side], [10 + away - side, 10 - away - side, 2 * side, 2 * side]]
    assert turned.boxes == pytest.approx(np.array(expected))


def test_a_box_that_rotation_takes_out_of_the_image_is_dropped():
    turned = rotate(numbered([[0, 1, 1, 2], [2, 1, 2, 2]]), 90.0, 255)  # the left edge goes below a wide image
    assert turned.box_indices.tolist() == [1]
    assert turned.boxes == pytest.approx(np.array([[2, 1, 2, 2]]))


def test_a_flip_mirrors_pixels_boxes_and_mask():
    image, boxes, mask = scene()
    flipped = augment_image(image, ImageAugment(flip=1.0), np.random.default_rng(0), boxes, mask)
    np.testing.assert_array_equal(flipped.image, np.asarray(image)[:, ::-1])
    np.testing.assert_array_equal(flipped.mask, mask[:, ::-1])
    assert flipped.boxes.tolist() == [[WIDTH - 20 - 30, 10, 30, 25]]


@pytest.mark.parametrize(
    ("erased", "visible"),
    [
        ((12, 12, 2, 2), [10, 10, 10, 8]),  # inside
        ((0, 0, 15, 12), [10, 10, 10, 8]),  # a corner: the box around the rest is the same
        ((8, 5, 6, 20), [14, 10, 6, 8]),  # the left side
        ((16, 10, 4, 8), [10, 10, 6, 8]),  # the right side
        ((5, 5, 20, 8), [10, 13, 10, 5]),  # the top
        ((10, 15, 10, 10), [10, 10, 10, 5]),  # the bottom
        ((12, 5, 3, 20), [10, 10, 10, 8]),  # a stripe through the middle
        ((40, 5, 3, 20), [10, 10, 10, 8]),  # elsewhere
    ],
)
def test_a_box_shrinks_to_what_an_erased_part_leaves_visible(erased, visible):
    assert uncover_boxes(np.array([[10.0, 10, 10, 8]]), erased).tolist() == [visible]


def test_a_box_that_is_erased_has_no_area():
    (box,) = uncover_boxes(np.array([[10.0, 10, 10, 8]]), (9, 9, 12, 12))
    assert box[2] * box[3] == 0


def test_colours_change_within_their_strength_and_boxes_stay():
    grey = Image.fromarray(np.full((8, 8, 3), 100, dtype=np.uint8))
    levels = set()
    for seed in SEEDS:
        result = augment_image(
            grey, ImageAugment(flip=0.0, color=0.2), np.random.default_rng(seed), np.array([[1.0, 1, 3, 3]])
        )
        assert result.boxes.tolist() == [[1, 1, 3, 3]]
        (level,) = set(result.image.ravel().tolist())
        assert 79 <= level <= 121
        levels.add(level)
    assert len(levels) > 10
