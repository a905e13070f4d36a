"""What a winner of a classification does well and badly: calibration, scores of each class, its worst and its most uncertain errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sft_dist.data.rows import Rows
from sft_dist.metrics.calibration import calibration_scores, fit_temperature
from sft_dist.metrics.classification import softmax
from sft_dist.tasks.base import Task
from sft_dist.tasks.classes import ClassTask

NUM_ERRORS = 20
_MAX_CHARS = 200


def is_single_label(task: Task) -> bool:
    return isinstance(task, ClassTask) and task.recipe.task.kind.classes == "one"


def calibration(
    predictions: Mapping[str, list[Any]],  # split -> logits of each example
    targets: Mapping[str, np.ndarray],  # split -> class numbers
) -> dict[str, Any]:
    """Calibration on each split, and with the temperature that is fitted on validation alone."""
    logits = {split: np.stack(values) for split, values in predictions.items()}
    report: dict[str, Any] = {split: calibration_scores(logits[split], targets[split]) for split in logits}
    if "validation" not in logits:
        return report
    temperature = fit_temperature(logits["validation"], targets["validation"])
    scaled = {
        f"{split}_scaled": calibration_scores(logits[split] / temperature, targets[split])
        for split in logits
        if split != "validation"  # on which it was fitted
    }
    return {**report, **scaled, "temperature": temperature}


def per_class(matrix: list[list[int]], labels: list[str]) -> dict[str, dict[str, float | None]]:
    """Precision, recall, F1 and number of examples of each class, from a confusion matrix; None for 0/0."""
    counts = np.array(matrix, dtype=float)
    right, true, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return {
        label: {
            "precision": _share(right[i], predicted[i]),
            "recall": _share(right[i], true[i]),
            "f1": _share(2 * right[i], true[i] + predicted[i]),
            "examples": int(true[i]),
        }
        for i, label in enumerate(labels)
    }


def _share(numerator: float, denominator: float) -> float | None:
    return float(numerator / denominator) if denominator else None


def errors(task: Task, predictions: list[Any], targets: np.ndarray, row_ids: np.ndarray, rows: Rows) -> dict[str, Any]:
    """The wrong answers that the model is surest of, and the answers that it is least sure of."""
    probabilities = softmax(np.stack(predictions))
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    misclassified = np.flatnonzero(predicted != targets)
    indices_by_list = {
        "worst": misclassified[np.argsort(-confidence[misclassified], kind="stable")][:NUM_ERRORS],
        "most_uncertain": np.argsort(confidence, kind="stable")[:NUM_ERRORS],
    }
    texts = _excerpts(task, rows, row_ids[np.concatenate(list(indices_by_list.values()))])
    return {
        name: [
            {
                "row": int(row_ids[i]),
                "label": task.labels[int(targets[i])],
                "predicted": task.labels[int(predicted[i])],
                "probability": float(confidence[i]),
                "text": texts.get(int(row_ids[i])),
            }
            for i in indices
        ]
        for name, indices in indices_by_list.items()
    }


def _excerpts(task: Task, rows: Rows, row_ids: np.ndarray) -> dict[int, str]:
    """Row number -> the beginning of its main text; nothing for tasks without texts."""
    column = next(iter(task.stored_texts.items()), None)
    if column is None or not len(row_ids):
        return {}
    name, text_of = column
    positions = np.flatnonzero(np.isin(rows.ids, row_ids))
    return {
        int(rows.ids[i]): text_of(row[name])[:_MAX_CHARS] for i, row in zip(positions, rows.at(positions), strict=True)
    }
