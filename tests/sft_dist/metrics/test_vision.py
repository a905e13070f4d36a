from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sft_dist.metrics.vision import box_scores, confusion, mask_scores

LABELS = ["cat", "dog", "fish"]


def boxes(*rows: tuple[float, ...], scores: tuple[float, ...] = ()) -> dict[str, np.ndarray]:
    """Rows of x, y, width, height, label."""
    table = np.array(rows, dtype=float).reshape(-1, 5)
    found = {"boxes": table[:, :4], "labels": table[:, 4].astype(int)}
    return found | {"scores": np.array(scores)} if scores else found


def test_perfect_boxes_score_one_and_absent_classes_do_not_count(capfd):
    truth = [boxes((0, 0, 10, 10, 0), (20, 20, 5, 9, 1)), boxes((3, 3, 7, 7, 0))]
    predicted = [one | {"scores": np.full(len(one["labels"]), 0.9)} for one in truth]
    scores = box_scores(predicted, truth, LABELS)
    assert scores["map"] == scores["map50"] == scores["map75"] == pytest.approx(1.0)
    assert scores["map_per_class"] == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0), "fish": None}
    assert capfd.readouterr().out == ""


def test_a_box_counts_up_to_the_overlap_it_has():
    truth = [boxes((0, 0, 100, 100, 0))]
    predicted = [boxes((0, 0, 100, 68, 0), scores=(0.9,))]  # IoU 0.68: right at 0.50, 0.55, 0.60 and 0.65 of ten
    scores = box_scores(predicted, truth, LABELS)
    assert scores["map"] == pytest.approx(0.4)
    assert scores["map50"] == pytest.approx(1.0)
    assert scores["map75"] == 0.0


def test_a_wrong_box_before_the_right_one_halves_the_precision():
    truth = [boxes((0, 0, 10, 10, 0)), boxes()]
    wrong_first = [boxes((0, 0, 10, 10, 0), scores=(0.5,)), boxes((0, 0, 10, 10, 0), scores=(0.9,))]
    assert box_scores(wrong_first, truth, LABELS)["map50"] == pytest.approx(0.5)
    assert box_scores(list(reversed(wrong_first)), list(reversed(truth)), LABELS)["map50"] == pytest.approx(0.5)


def test_nothing_found_is_zero_and_nothing_to_find_is_undefined():
    truth, nothing = [boxes((0, 0, 10, 10, 1))], [boxes() | {"scores": np.zeros(0)}]
    scores = box_scores(nothing, truth, LABELS)
    assert scores["map"] == 0.0
    assert scores["map_per_class"] == {"cat": None, "dog": 0.0, "fish": None}
    undefined = box_scores([boxes((0, 0, 10, 10, 1), scores=(0.3,))], [boxes()], LABELS)
    assert undefined["map"] is None
    assert undefined["map50"] is None


def random_scene(rng: np.random.Generator, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Objects of all of COCO's area ranges, some of them crowds, and what a mediocre detector predicts."""
    corner, size = (
        rng.uniform(0, 400, (count, 2)),
        rng.choice([10.0, 60.0, 200.0], (count, 1)) * rng.uniform(0.8, 1.2, (count, 2)),
    )
    truth = {
        "boxes": np.c_[corner, size],
        "labels": rng.integers(0, 3, count),
        "iscrowd": (rng.random(count) < 0.2).astype(int),
    }
    shift = np.repeat(size, 2, axis=1)[:, :4] * rng.normal(0, 0.1, (count, 4))
    hits = np.r_[truth["boxes"] + shift, np.c_[rng.uniform(0, 400, (count, 2)), rng.uniform(5, 60, (count, 2))]]
    labels = np.r_[truth["labels"], rng.integers(0, 3, count)]
    return truth, {"boxes": hits, "labels": labels, "scores": rng.random(2 * count)}


@pytest.mark.slow
def test_scores_are_those_of_pycocotools_with_crowds_areas_and_hundreds_of_objects(tmp_path, capfd):
    rng = np.random.default_rng(3)
    truth, predicted = zip(*(random_scene(rng, count) for count in (3, 0, 40, 250)), strict=True)
    numbers = [(image, *values) for image, one in enumerate(truth) for values in zip(*one.values(), strict=True)]
    annotations = [
        {"id": i, "image_id": image, "bbox": box.tolist(), "area": box[2] * box[3], "category_id": int(label), "iscrowd": int(crowd)}
        for i, (image, box, label, crowd) in enumerate(numbers, 1)
    ]  # fmt: skip
    content = {
        "images": [{"id": image} for image in range(4)],
        "annotations": annotations,
        "categories": [{"id": i} for i in range(3)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    coco = COCO(tmp_path / "truth.json")
    detections = [
        {"image_id": image, "bbox": box.tolist(), "category_id": int(label), "score": float(score)}
        for image, one in enumerate(predicted)
        for box, label, score in zip(one["boxes"], one["labels"], one["scores"], strict=True)
    ]
    evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        step()
    capfd.readouterr()
    scores = box_scores(predicted, truth, LABELS)
    assert [scores[name] for name in ("map", "map50", "map75")] == pytest.approx(
        evaluation.stats[:3].tolist(), abs=1e-12
    )
    assert 0.05 < scores["map"] < 0.9


def test_what_is_predicted_in_a_crowd_is_ignored():
    truth = [boxes((0, 0, 10, 10, 0), (20, 20, 50, 50, 0)) | {"iscrowd": np.array([0, 1])}]
    predicted = [boxes((25, 25, 9, 9, 0), (40, 40, 9, 9, 0), (0, 0, 10, 10, 0), scores=(0.9, 0.8, 0.7))]
    assert box_scores(predicted, truth, LABELS)["map"] == pytest.approx(1.0)
    alone = [{name: value[1:] for name, value in truth[0].items()}]
    assert box_scores(predicted, alone, LABELS)["map"] is None


def test_mask_scores_by_hand():
    truth = np.array([[0, 0, 0, 1], [1, 1, 255, 255]])
    predicted = np.array([[0, 0, 1, 1], [1, 0, 2, 0]])
    matrix = confusion(predicted, truth, 3, 255)
    assert matrix.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    scores = mask_scores(matrix, LABELS)
    assert scores["mean_iou"] == pytest.approx(0.5)  # 2 of 4 for each; fish is nowhere
    assert scores["dice"] == pytest.approx(2 / 3)
    assert scores["pixel_accuracy"] == pytest.approx(4 / 6)
    assert scores["mean_accuracy"] == pytest.approx(2 / 3)
    assert scores["iou_per_class"] == {"cat": pytest.approx(0.5), "dog": pytest.approx(0.5), "fish": None}


def test_a_class_that_is_only_predicted_counts_as_missed():
    matrix = confusion(np.array([[2, 0]]), np.array([[0, 0]]), 3, 255)
    scores = mask_scores(matrix, LABELS)
    assert scores["mean_iou"] == pytest.approx((0.5 + 0.0) / 2)
    assert scores["mean_accuracy"] == pytest.approx(0.5)


def test_no_labelled_pixels_are_undefined():
    scores = mask_scores(confusion(np.zeros((2, 2), int), np.full((2, 2), 255), 3, 255), LABELS)
    assert scores["mean_iou"] is None
    assert scores["pixel_accuracy"] is None
