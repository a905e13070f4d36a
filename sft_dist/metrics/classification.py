"""Metrics of classes and numbers, by scikit-learn. A metric that is undefined on the data is None, never a guess.

`macro` is the mean over the classes that occur in the targets or in the predictions, as in scikit-learn without `labels`: a
class that the data lacks says nothing about the model, and 0 for it would be a guess. The precision of a class that occurs and is
never predicted is 0 in the averages, as in scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def single_label_scores(
    logits: np.ndarray,  # (examples, classes)
    targets: np.ndarray,  # (examples,) class numbers
) -> dict[str, Any]:
    from sklearn import metrics as sk

    predicted = logits.argmax(axis=1)
    occurring = np.union1d(targets, predicted)
    scores: dict[str, Any] = {"accuracy": sk.accuracy_score(targets, predicted)}
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            targets, predicted, labels=occurring, average=average, zero_division=0.0
        )
        scores |= {f"precision_{average}": precision, f"recall_{average}": recall, f"f1_{average}": f1}
    # With one class alone among the targets or the predictions it is 0/0, for which scikit-learn returns 0.
    is_defined = np.ptp(targets) > 0 and np.ptp(predicted) > 0
    scores["mcc"] = sk.matthews_corrcoef(targets, predicted) if is_defined else None
    scores["roc_auc"] = _roc_auc(softmax(logits), targets)
    classes = np.arange(logits.shape[1])
    return _plain(scores) | {"confusion_matrix": sk.confusion_matrix(targets, predicted, labels=classes).tolist()}


def multi_label_scores(
    logits: np.ndarray,  # (examples, classes)
    targets: np.ndarray,  # (examples, classes) zeros and ones
    threshold: float,
) -> dict[str, Any]:
    from sklearn import metrics as sk

    probabilities = sigmoid(logits)
    classes = logits.shape[1]
    targets, predicted = _multi_label(targets), _multi_label(probabilities >= threshold)
    scores: dict[str, Any] = {"exact_match": sk.accuracy_score(targets, predicted)}
    occurring = np.flatnonzero((targets | predicted).any(axis=0))
    for average in ("macro", "micro", "weighted"):
        precision = recall = f1 = None
        if len(occurring):
            precision, recall, f1, _ = sk.precision_recall_fscore_support(
                targets, predicted, labels=occurring, average=average, zero_division=0.0
            )
        scores |= {f"precision_{average}": precision, f"recall_{average}": recall, f"f1_{average}": f1}
    varied = [c for c in range(classes) if 0 < targets[:, c].sum() < len(targets)]
    scores["roc_auc"] = (
        sk.roc_auc_score(targets[:, varied], probabilities[:, varied], average="macro") if varied else None
    )
    matrices = sk.multilabel_confusion_matrix(targets, predicted)[:classes]
    return _plain(scores) | {"confusion_matrix": matrices.tolist()}


def regression_scores(
    predicted: np.ndarray,  # (examples,)
    targets: np.ndarray,  # (examples,)
) -> dict[str, Any]:
    from scipy import stats
    from sklearn import metrics as sk

    mse = sk.mean_squared_error(targets, predicted)
    targets_vary = len(targets) > 1 and np.ptp(targets) > 0
    both_vary = targets_vary and np.ptp(predicted) > 0
    return _plain(
        {
            "mse": mse,
            "rmse": mse**0.5,
            "mae": sk.mean_absolute_error(targets, predicted),
            "r2": sk.r2_score(targets, predicted) if targets_vary else None,
            "pearson": stats.pearsonr(targets, predicted).statistic if both_vary else None,
            "spearman": rank_correlation(predicted, targets),
        }
    )


def rank_correlation(predicted: np.ndarray, targets: np.ndarray) -> float | None:
    """Spearman's; None where either does not vary."""
    from scipy import stats

    both_vary = np.ptp(targets) > 0 and np.ptp(predicted) > 0
    return float(stats.spearmanr(targets, predicted).statistic) if both_vary else None


def softmax(logits: np.ndarray) -> np.ndarray:  # (..., classes) -> same
    exponent = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -500, 500)))


def _multi_label(values: np.ndarray) -> np.ndarray:  # (examples, classes) -> (examples, classes, at least two)
    """Returns zeros and ones. A single class gets an empty second one beside it: scikit-learn takes one column for the two
    classes of a binary problem, and class 0 would then be the absence of the label."""
    values = values.astype(int)
    return np.pad(values, ((0, 0), (0, 1))) if values.shape[1] == 1 else values


def _roc_auc(probabilities: np.ndarray, targets: np.ndarray) -> float | None:
    """Two classes: the usual area. More: one versus rest, averaged over the classes that some but not all targets have."""
    from sklearn.metrics import roc_auc_score

    if probabilities.shape[1] == 2:
        return roc_auc_score(targets, probabilities[:, 1]) if len(set(targets.tolist())) == 2 else None
    areas = [
        roc_auc_score(targets == c, probabilities[:, c])
        for c in range(probabilities.shape[1])
        if 0 < (targets == c).sum() < len(targets)
    ]
    return float(np.mean(areas)) if areas else None


def _plain(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value is None or not np.isfinite(value) else float(value) for name, value in scores.items()}
