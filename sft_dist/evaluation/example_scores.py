"""What each example adds to a score: the table of every metric's kind, from predictions and references.

A *rate* counts examples that are right; a *mean* averages a number of each example; everything else is a *corpus* score, which
is no mean over examples. The kind decides about interval and test (`statistics`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sft_dist.data.rows import Examples
from sft_dist.evaluation.inference import weights_of
from sft_dist.evaluation.statistics import (
    ExampleScores,
    ExampleSubsets,
    ExampleSums,
    by_group,
    divide,
    ratio,
    sums_of,
    units_of,
)
from sft_dist.metrics.audio import transcript_edits
from sft_dist.metrics.classification import rank_correlation, sigmoid, softmax
from sft_dist.metrics.text import bleu_tokenizer, entity_counts, summary_scores
from sft_dist.recipe.metrics import installed_metric
from sft_dist.recipe.schema import CrossEntropyLoss
from sft_dist.recipe.tasks import TASKS
from sft_dist.tasks.base import Loss, Task
from sft_dist.tasks.classes import ClassTask
from sft_dist.tasks.image_classification import top_accuracy

_FAST, _SLOW = (
    20_000_000,
    100_000,
)  # examples that may be scored again in one interval: ranks, of each class; COCO, plugins
Builder = Callable[[Task, list[Any], Examples], dict[str, Any]]


def example_scores(
    task: Task,
    loss: Loss | None,
    predictions: list[Any],
    examples: Examples,
    groups: np.ndarray | None = None,
    losses: np.ndarray | None = None,  # (examples, parts) of each example, where they were recorded
) -> dict[str, ExampleScores]:
    """Returns the metrics of a task that can be resampled, by name. Without a loss there is none for `loss`."""
    sums = _sums(task, loss, predictions, examples)
    if "loss" not in sums and loss is not None and losses is not None:
        sums["loss"] = _recorded_loss(losses, weights_of(task, loss, examples))
    scores: dict[str, ExampleScores] = {name: by_group(value, groups) for name, value in sums.items()}
    for name, (values, evaluate, max_scored) in _subset_scores(task, predictions, examples).items():
        scores[name] = ExampleSubsets(values, units_of(len(examples), groups), evaluate, max_scored)
    return scores


def _sums(task: Task, loss: Loss | None, predictions: list[Any], examples: Examples) -> dict[str, ExampleSums]:
    if isinstance(task, ClassTask):
        return _of_classes(task, loss, np.stack(predictions), examples)
    if task.recipe.task.type not in TASKS:  # a plugin's metric of the same name may be another
        return {}
    metrics = task.recipe.task.kind.metrics
    builders = [build for metric, build in _BUILDERS.items() if metric in metrics]
    return builders[0](task, predictions, examples) if builders else {}


def _recorded_loss(losses: np.ndarray, weights: np.ndarray) -> ExampleSums:  # both (examples, parts)
    """A sum of ratios, such as the loss of all tokens over their number: numerators and divisors are drawn together."""
    num_parts = losses.shape[1]

    def score(sums: np.ndarray) -> np.ndarray:
        totals, divisors = sums[..., :num_parts], sums[..., num_parts:]
        return (totals / np.where(divisors > 0, divisors, 1.0)).sum(axis=-1)

    return sums_of("corpus", np.concatenate([losses, weights], axis=1), score)


def _subset_scores(task: Task, predictions: list[Any], examples: Examples) -> dict[str, tuple[Any, Any, int]]:
    """Metric -> (predictions, function of them and indices, examples that may be scored)."""
    scores: dict[str, tuple[Any, Any, int]] = {}
    if isinstance(task, ClassTask):
        logits, targets = np.stack(predictions), np.stack(task.references(examples))
        metrics = task.recipe.task.kind.metrics
        if "roc_auc" in metrics:
            probabilities, is_true = _columns(logits, targets)
            scores["roc_auc"] = (probabilities, _areas_under(is_true), _FAST // probabilities.shape[1])
        if "spearman" in metrics:
            scores["spearman"] = (
                logits[:, 0],
                lambda values, rows: rank_correlation(values[rows], targets[rows]),
                _FAST,
            )
    if task.recipe.task.type in TASKS:
        for name in {"map", "map50", "map75"} & set(task.recipe.task.kind.metrics):
            scores[name] = (predictions, _of_task_subset(task, examples, name), _SLOW)
    if metric := installed_metric(task.recipe):
        references = task.references(examples)

        def compute(values: list[Any], indices: np.ndarray) -> float | None:
            try:
                score = metric.compute([values[i] for i in indices], [references[i] for i in indices])
                return None if score is None else float(score)
            except Exception:  # somebody else's code, on a subset that may lack a class
                return None

        scores[metric.name] = (predictions, compute, _SLOW)
    return scores


def _columns(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(examples, columns) probabilities and truth, one column for each class whose area is averaged; of two classes, for the second."""
    if targets.ndim == 2:
        return sigmoid(logits), targets.astype(bool)
    first = 1 if logits.shape[1] == 2 else 0
    return softmax(logits)[:, first:], targets[:, None] == np.arange(first, logits.shape[1])


def _areas_under(is_true: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float | None]:
    """The mean area under the curve, as `metrics.classification` has it, from ranks: a tenth of scikit-learn's time."""

    def evaluate(probabilities: np.ndarray, indices: np.ndarray) -> float | None:
        areas = [
            _area(values[indices], truth[indices]) for values, truth in zip(probabilities.T, is_true.T, strict=True)
        ]
        defined = [area for area in areas if area is not None]
        return float(np.mean(defined)) if defined else None

    return evaluate


def _area(values: np.ndarray, is_true: np.ndarray) -> float | None:
    """Mann and Whitney's statistic; None where all are true or none is."""
    num_true = int(is_true.sum())
    num_false = len(is_true) - num_true
    if not num_true or not num_false:
        return None
    distinct, codes = np.unique(values, return_inverse=True)
    true, total = (np.bincount(chosen, minlength=len(distinct)) for chosen in (codes[is_true], codes))
    false = total - true
    wins = true @ (np.cumsum(false) - false / 2)
    return float(wins) / (num_true * num_false)


def _of_task_subset(task: Task, examples: Examples, name: str) -> Any:
    def evaluate(predictions: list[Any], indices: np.ndarray) -> float | None:
        subset = Examples(examples.table.select(indices), examples.split)
        return task.score([predictions[i] for i in indices], subset, None)[name]

    return evaluate


# ── classes ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _of_classes(task: ClassTask, loss: Loss | None, logits: np.ndarray, examples: Examples) -> dict[str, ExampleSums]:
    targets = np.stack(task.references(examples))
    kind = task.recipe.task.kind
    build = {"one": _of_one_class, "many": _of_many_classes, "none": _of_numbers}[kind.classes]
    scores = build(task, logits, targets)
    if loss is not None:
        losses = _losses(task, loss, logits, examples)
        scores["loss"] = sums_of("mean" if (losses[:, 1] == 1).all() else "corpus", losses, ratio)
    return scores


def _losses(task: ClassTask, loss: Any, logits: np.ndarray, examples: Examples) -> np.ndarray:
    """(examples, 2) the loss of each example, and what it adds to the divisor."""
    outputs, labels = torch.from_numpy(logits), task.targets_of(examples.column("label"))
    totals = [float(loss.total(outputs[i : i + 1], labels[i : i + 1])) for i in range(len(outputs))]
    return np.stack([np.array(totals), np.asarray(task.weights(loss, examples), dtype=np.float64)], axis=1)


def _rate(right: np.ndarray) -> ExampleSums:
    return sums_of("rate", np.stack([right.astype(float), np.ones(len(right))], axis=1), ratio)


def _mean(values: np.ndarray, score: Callable[[np.ndarray], np.ndarray] = ratio) -> ExampleSums:
    return sums_of("mean", np.stack([np.asarray(values, dtype=float), np.ones(len(values))], axis=1), score)


def _of_one_class(task: ClassTask, logits: np.ndarray, targets: np.ndarray) -> dict[str, ExampleSums]:
    predicted = logits.argmax(axis=1)
    num_classes = logits.shape[1]
    pairs, codes = np.unique(targets * num_classes + predicted, return_inverse=True)
    true_class, predicted_class = np.divmod(pairs, num_classes)
    one_hot = np.eye(num_classes)
    right = one_hot[true_class] * (true_class == predicted_class)[:, None]
    vectors = np.concatenate([right, one_hot[true_class], one_hot[predicted_class]], axis=1)
    scores = {name: ExampleSums("corpus", vectors, codes.reshape(-1), score) for name, score in CLASS_SCORES.items()}
    scores |= {"accuracy": _rate(predicted == targets)}
    if "top5_accuracy" in task.recipe.task.kind.metrics:
        rows = np.arange(len(targets))[:, None]
        scores["top5_accuracy"] = _rate(np.array([top_accuracy(logits[i], targets[i], 5) for i in rows]))
    return scores


def _of_many_classes(task: ClassTask, logits: np.ndarray, targets: np.ndarray) -> dict[str, ExampleSums]:
    threshold = task.label_type.threshold
    assert threshold is not None
    predicted, true = sigmoid(logits) >= threshold, targets.astype(bool)
    rows = np.concatenate([predicted & true, true, predicted], axis=1)
    scores = {name: sums_of("corpus", rows, score) for name, score in {**CLASS_SCORES, **MICRO_SCORES}.items()}
    return {**scores, "exact_match": _rate((predicted == true).all(axis=1))}


def _of_numbers(task: ClassTask, logits: np.ndarray, targets: np.ndarray) -> dict[str, ExampleSums]:
    predicted, true = logits[:, 0].astype(np.float64), targets.astype(np.float64)
    errors, centre = predicted - true, true.mean()
    moments = np.stack([np.ones(len(true)), errors**2, true - centre, (true - centre) ** 2], axis=1)
    pair = np.stack([np.ones(len(true)), x := predicted - centre, y := true - centre, x * x, y * y, x * y], axis=1)
    return {
        "mse": _mean(errors**2),
        "mae": _mean(np.abs(errors)),
        "rmse": sums_of("corpus", np.stack([errors**2, np.ones(len(true))], axis=1), lambda sums: np.sqrt(ratio(sums))),
        "r2": sums_of("corpus", moments, _r2),
        "pearson": sums_of("corpus", pair, _pearson),
    }


def _r2(sums: np.ndarray) -> np.ndarray:
    count, squares, total, total_squares = np.moveaxis(sums, -1, 0)
    return 1 - divide(squares, total_squares - total**2 / count)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    return divide(xy - x * y / n, np.sqrt(np.maximum((xx - x * x / n) * (yy - y * y / n), 0)))


def _class_counts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(..., 3 * classes) -> right, true and predicted examples of each class, (..., classes)."""
    right, true, predicted = np.split(sums, 3, axis=-1)
    return right, true, predicted


def _averaged(numerator: str, average: str) -> Callable[[np.ndarray], np.ndarray]:
    """Precision, recall or F1, averaged as in `metrics.classification`: over the classes that occur; 0 for 0/0."""

    def score(sums: np.ndarray) -> np.ndarray:
        right, true, predicted = _class_counts(sums)
        if average == "micro":
            right, true, predicted = (count.sum(axis=-1, keepdims=True) for count in (right, true, predicted))
        divisor = {"precision": predicted, "recall": true, "f1": (true + predicted) / 2}[numerator]
        values = np.nan_to_num(divide(right, divisor))
        weights = true if average == "weighted" else (true + predicted > 0).astype(float)
        return divide((values * weights).sum(axis=-1), weights.sum(axis=-1))

    return score


def _mean_over_classes(divisor: Callable[..., np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The mean of right / divisor over the classes where the divisor is not 0."""

    def score(sums: np.ndarray) -> np.ndarray:
        right, true, predicted = _class_counts(sums)
        bottom = divisor(right, true, predicted)
        return divide(np.nan_to_num(divide(right, bottom)).sum(axis=-1), (bottom > 0).sum(axis=-1).astype(float))

    return score


def _mcc(sums: np.ndarray) -> np.ndarray:
    """Matthews' coefficient of several classes (Gorodkin 2004)."""
    right, true, predicted = _class_counts(sums)
    n = true.sum(axis=-1)
    top = n * right.sum(axis=-1) - (true * predicted).sum(axis=-1)
    return divide(top, np.sqrt((n**2 - (true**2).sum(axis=-1)) * (n**2 - (predicted**2).sum(axis=-1))))


def _share_right(sums: np.ndarray) -> np.ndarray:
    right, true, _ = _class_counts(sums)
    return divide(right.sum(axis=-1), true.sum(axis=-1))


_recall = _mean_over_classes(lambda right, true, predicted: true)
_NUMERATORS = ("precision", "recall", "f1")
CLASS_SCORES = {
    **{f"{name}_{average}": _averaged(name, average) for name in _NUMERATORS for average in ("macro", "weighted")},
    "mcc": _mcc,
    "uar": _recall,
}
MICRO_SCORES = {f"{name}_micro": _averaged(name, "micro") for name in _NUMERATORS}
ENTITY_SCORES = {name: _averaged(name, "micro") for name in _NUMERATORS}
MASK_SCORES = {
    "mean_iou": _mean_over_classes(lambda right, true, predicted: true + predicted - right),
    "pixel_accuracy": _share_right,
    "mean_accuracy": _recall,
    "dice": _mean_over_classes(lambda right, true, predicted: (true + predicted) / 2),
}


# ── other tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _of_tags(task: Any, predictions: list[Any], examples: Examples) -> dict[str, ExampleSums]:
    scheme = task.scheme
    pairs = [
        (scheme.normalize(true), scheme.normalize(prediction["tags"]))
        for true, prediction in zip(task.references(examples), predictions, strict=True)
    ]
    counts = np.array([entity_counts(true, predicted) for true, predicted in pairs])
    right = [[sum(a == b for a, b in zip(true, predicted, strict=True)), len(true)] for true, predicted in pairs]
    scores = {name: sums_of("corpus", counts, score) for name, score in ENTITY_SCORES.items()}
    return {**scores, "accuracy": sums_of("corpus", np.array(right), ratio)}


def _of_translations(task: Any, predictions: list[str], examples: Examples) -> dict[str, ExampleSums]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    references = task.references(examples)
    bleu = BLEU(tokenize=bleu_tokenizer(task.settings.target_language, references), force=True)
    return {
        name: sums_of("corpus", np.array(metric._extract_corpus_statistics(predictions, [references])), _by(metric))
        for name, metric in (("bleu", bleu), ("chrf", CHRF()))
    }


def _by(metric: Any) -> Callable[[np.ndarray], np.ndarray]:
    def score(sums: np.ndarray) -> np.ndarray:
        rows = np.rint(sums).astype(int).reshape(-1, sums.shape[-1]).tolist()
        values = [metric._compute_score_from_stats(row).score for row in rows]
        return np.array(values, dtype=float).reshape(sums.shape[:-1])

    return score


def _of_summaries(task: Any, predictions: list[str], examples: Examples) -> dict[str, ExampleSums]:
    pairs = zip(task.references(examples), predictions, strict=True)
    scores = [summary_scores([reference], [text]) for reference, text in pairs]
    return {name: _mean(np.array([score[name] for score in scores])) for name in scores[0]}


def _of_transcripts(task: Any, predictions: list[str], examples: Examples) -> dict[str, ExampleSums]:
    edits = transcript_edits(predictions, task.references(examples))
    return {"wer": sums_of("corpus", edits[:, :2], ratio), "cer": sums_of("corpus", edits[:, 2:], ratio)}


def _of_answers(task: Any, predictions: list[Any], examples: Examples) -> dict[str, ExampleSums]:
    learned_tokens = []
    for number, (losses, *_) in enumerate(predictions):
        learned = np.array(task._learned(examples.at([number])[0])[1:], dtype=bool)
        learned_tokens.append([float(losses[learned].sum(dtype=np.float64)), int(learned.sum())])
    matches = [
        [float((predicted[tokens >= 0] == tokens[tokens >= 0]).sum()), float((tokens >= 0).sum())]
        for (_, predicted, *_), tokens in zip(predictions, task.references(examples), strict=True)
    ]
    right = np.array([[number == total, 1.0] if total else [0.0, 0.0] for number, total in matches], dtype=float)
    scores = {
        "perplexity": sums_of("corpus", np.array(learned_tokens), lambda sums: np.exp(ratio(sums))),
        "token_accuracy": sums_of("corpus", np.array(matches), ratio),
        "exact_match": sums_of("rate", right, ratio),
    }
    loss = task.recipe.train.loss
    is_smoothed = isinstance(loss, CrossEntropyLoss) and loss.label_smoothing > 0
    return scores if is_smoothed else {**scores, "loss": sums_of("corpus", np.array(learned_tokens), ratio)}


def _of_masks(task: Any, predictions: list[np.ndarray], examples: Examples) -> dict[str, ExampleSums]:
    rows = [np.concatenate([np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)]) for matrix in predictions]
    return {name: sums_of("corpus", np.array(rows), score) for name, score in MASK_SCORES.items()}


# Metric -> what examples add to it and to the task's other metrics.
_BUILDERS: dict[str, Builder] = {
    "f1": _of_tags,
    "bleu": _of_translations,
    "rougeL": _of_summaries,
    "wer": _of_transcripts,
    "perplexity": _of_answers,
    "mean_iou": _of_masks,
}
