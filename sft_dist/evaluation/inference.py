"""Forward passes without gradients over a whole split, padded little and each example exactly once."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn

from sft_dist.data.encode import collate
from sft_dist.data.rows import Examples
from sft_dist.recipe.entry_points import METRICS_GROUP, plugin_of
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.metrics import directions, installed_metric
from sft_dist.tasks.base import Loss, Task


@dataclass(frozen=True)
class BatchPredictions:
    """What a model says about some examples."""

    indices: np.ndarray  # (examples,)
    predictions: list[Any]  # one an example, as the task makes them
    totals: np.ndarray  # (parts,) of the summed loss; zeros when there are no targets
    losses: np.ndarray | None = (
        None  # (examples, parts) of each example, where they were requested and the loss has them
    )


def length_sorted_batches(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Indices in batches of similar length, the longest first: if memory is too small, it shows at once."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def forward(
    model: nn.Module,
    task: Task,
    loss: Loss | None,
    processor: Any,
    examples: Examples,
    batches: Iterable[np.ndarray],
    device: torch.device,
    autocast: AbstractContextManager[None],
    raw_model: nn.Module | None = None,  # not wrapped for distribution, where `model` is
    collate: Callable[[Task, Examples, np.ndarray, Any], tuple[dict[str, Any], Any]] = collate,
    with_losses: bool = False,
) -> list[BatchPredictions]:
    model.eval()
    batch_predictions = []
    # Not inference_mode: sharded weights are gathered, and those tensors are used again.
    with torch.no_grad(), autocast:
        for indices in batches:
            inputs, targets = send_to_device(collate(task, examples, indices, processor), device)
            outputs = task.forward(model, inputs)
            predictions = task.predict(raw_model or model, inputs, outputs, processor)
            totals, losses = np.zeros(1), None
            if loss is not None and targets is not None:
                with torch.autocast(device.type, enabled=False):
                    totals = loss.total(outputs, targets).reshape(-1).double().cpu().numpy()
                    losses = _losses_of_each(loss, outputs, targets, len(indices)) if with_losses else None
            batch_predictions.append(BatchPredictions(indices, predictions, totals, losses))
    return batch_predictions


def _losses_of_each(loss: Any, outputs: Any, targets: Any, num_examples: int) -> np.ndarray | None:
    """(examples, parts); None for a loss without `of_each`, and for examples packed into one row."""
    if not hasattr(loss, "of_each"):
        return None
    losses = loss.of_each(outputs, targets)
    return losses.reshape(num_examples, -1).double().cpu().numpy() if len(losses) == num_examples else None


def assemble(parts: Iterable[BatchPredictions], num_examples: int) -> tuple[list[Any], np.ndarray]:
    """Predictions in the examples' own order, and the loss's totals. Every example must be in exactly one part."""
    parts = list(parts)
    indices = np.concatenate([batch.indices for batch in parts])
    predictions = [prediction for batch in parts for prediction in batch.predictions]
    if not len(indices) == len(predictions) == len(np.unique(indices)) == num_examples:
        raise RuntimeError(f"{len(predictions)} predictions for {num_examples} examples")
    totals = np.stack([batch.totals for batch in sorted(parts, key=lambda batch: int(batch.indices[0]))]).sum(axis=0)
    return [predictions[position] for position in np.argsort(indices)], totals


def losses_of_each(parts: Iterable[BatchPredictions]) -> np.ndarray | None:
    """(examples, parts) in the examples' own order; None unless every batch has them."""
    parts = list(parts)
    losses = [batch.losses for batch in parts if batch.losses is not None]
    if len(losses) < len(parts):
        return None
    return np.concatenate(losses)[np.argsort(np.concatenate([batch.indices for batch in parts]))]


def scores_of(
    task: Task, loss: Loss, predictions: list[Any], totals: np.ndarray, examples: Examples, processor: Any
) -> dict[str, Any]:
    """The task's scores, and the mean loss over the split (weighted as in training), None where it is infinite.

    Where a prediction is NaN or infinite, every score is None and `undefined` says why: scikit-learn would refuse such
    predictions, and COCO would rank them first. Predictions that are classes or texts by now reveal it by a NaN loss.
    """
    mean = float((totals / normalizers_of(weights_of(task, loss, examples))).sum())
    bad = sum(map(is_not_finite, predictions))
    if bad or math.isnan(mean):
        reason = f"{bad} of {len(predictions)} predictions are NaN or infinite" if bad else "the loss is NaN"
        return {"loss": None, **dict.fromkeys(directions(task.recipe)), "undefined": {"why": reason}}
    scores = task.score(predictions, examples, processor)
    return {
        "loss": mean if math.isfinite(mean) else None,
        **scores,
        **_installed_score(task, predictions, examples),
    }


def _installed_score(task: Task, predictions: list[Any], examples: Examples) -> dict[str, float | None]:
    """Returns the metric of another package that the recipe names. Raises UserError, which names metric and distribution."""
    metric = installed_metric(task.recipe)
    if metric is None:
        return {}
    references = task.references(examples)
    plugin = plugin_of(METRICS_GROUP, metric.name)
    try:
        score = metric.compute(predictions, references)
    except Exception as error:  # whatever code of somebody else raises
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}:{frame.lineno}"
        raise UserError(f"{plugin} failed: {type(error).__name__}: {error} ({where})") from error
    if score is None:
        return {metric.name: None}
    if isinstance(score, bool) or not isinstance(score, Real):
        raise UserError(f"{plugin} returned {score!r}; a number is needed, or None where the score is undefined")
    return {metric.name: float(score) if math.isfinite(score) else None}


def is_not_finite(prediction: Any) -> bool:
    """Returns whether a prediction (a number, an array, or a mapping of those) holds NaN or infinity."""
    if isinstance(prediction, dict):
        return any(map(is_not_finite, prediction.values()))
    if isinstance(prediction, np.ndarray) and prediction.dtype.kind == "f":
        return not np.isfinite(prediction).all()
    return isinstance(prediction, float) and not math.isfinite(prediction)


def weights_of(task: Task, loss: Loss, examples: Examples) -> np.ndarray:
    """(examples, parts) what each example adds to the divisors."""
    weights = np.asarray(task.weights(loss, examples), dtype=np.float64)
    return weights[:, None] if weights.ndim == 1 else weights


def normalizers_of(weights: np.ndarray) -> np.ndarray:  # (examples, parts) -> (parts,)
    """A part that no example adds to, such as boxes in images without any, is divided by one."""
    sums = weights.sum(axis=0)
    return np.where(sums > 0, sums, 1.0)


def better(score: float | None, than: float | None, direction: str, min_delta: float = 0.0) -> bool:
    """An undefined score is better than nothing else."""
    if score is None or than is None:
        return score is not None
    return score > than + min_delta if direction == "max" else score < than - min_delta
