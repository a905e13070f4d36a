"""Metrics of boxes and of masks. A metric that is undefined on the data is None, never a guess."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_BOXES = 100  # per image and class that count, as in COCO


def box_scores(
    predicted: Sequence[dict[str, np.ndarray]],  # per image: boxes (n, 4) x, y, width, height; scores (n,); labels (n,)
    truth: Sequence[dict[str, np.ndarray]],  # per image: boxes (m, 4); labels (m,); iscrowd (m,) where there are crowds
    labels: Sequence[str],
) -> dict[str, Any]:
    """COCO's mean average precision (arXiv 1405.0312), by pycocotools: over IoU 0.50 to 0.95, at 0.50, at 0.75, and of each
    class. Classes without a box in `truth` do not count. What is predicted inside a crowd of its class is ignored."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": int(crowd),
        }
        for image, objects in enumerate(truth)
        for box, label, crowd in zip(
            objects["boxes"], objects["labels"], objects.get("iscrowd", np.zeros(len(objects["labels"]))), strict=True
        )
    ]
    detections = [
        {"image_id": image, "category_id": int(label), "bbox": box.tolist(), "score": float(score)}
        for image, objects in enumerate(predicted)
        for box, score, label in zip(objects["boxes"], objects["scores"], objects["labels"], strict=True)
    ]
    present = {annotation["category_id"] for annotation in annotations if not annotation["iscrowd"]}
    if not present:
        return {"map": None, "map50": None, "map75": None, "map_per_class": dict.fromkeys(labels)}
    if not detections:
        per_class = {label: 0.0 if number in present else None for number, label in enumerate(labels)}
        return {"map": 0.0, "map50": 0.0, "map75": 0.0, "map_per_class": per_class}
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(truth))],
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels)],
        "annotations": [
            {"id": number, **annotation} for number, annotation in enumerate(annotations, 1)
        ],  # 0 would mean: no match
    }
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.params.maxDets = [1, 10, MOST_BOXES]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class); -1: no box of the class
    thresholds = evaluation.params.iouThrs
    return {
        "map": _mean(precision),
        "map50": _mean(precision[np.isclose(thresholds, 0.5)]),
        "map75": _mean(precision[np.isclose(thresholds, 0.75)]),
        "map_per_class": {label: _mean(precision[:, :, number]) for number, label in enumerate(labels)},
    }


def _mean(precision: np.ndarray) -> float | None:
    defined = precision[precision > -1]
    return float(defined.mean()) if len(defined) else None


def confusion(
    predicted: np.ndarray,  # (height, width) class numbers
    truth: np.ndarray,  # (height, width) class numbers
    classes: int,
    ignore_index: int,
) -> np.ndarray:
    """(classes, classes) pixels: rows are the true classes, columns the predicted ones."""
    counted = truth != ignore_index
    pairs = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def mask_scores(matrix: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Returns the metrics of a confusion matrix summed over images. A class that neither occurs nor is predicted does not count in the mean
    IoU and dice, one that does not occur does not count in the mean accuracy (of the classes)."""
    right = np.diag(matrix).astype(np.float64)
    true, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    either = true + predicted - right
    with np.errstate(divide="ignore", invalid="ignore"):
        iou, dice, recall = right / either, 2 * right / (true + predicted), right / true
    total = matrix.sum()
    return {
        "mean_iou": _mean_of(iou),
        "pixel_accuracy": float(right.sum() / total) if total else None,
        "mean_accuracy": _mean_of(recall),
        "dice": _mean_of(dice),
        "iou_per_class": {
            label: None if np.isnan(value) else float(value) for label, value in zip(labels, iou, strict=True)
        },
        "confusion_matrix": matrix.tolist(),
    }


def _mean_of(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))
