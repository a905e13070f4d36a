"""Whether probabilities mean what they say: of predictions with probability 0.8, 80 in 100 should be right.

Calibration errors compare the probability of the predicted class with how often it is right. The binned error is not 0 for perfect
probabilities: the fewer examples, the larger it is, so its mean for perfect ones (the null floor) belongs beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sft_dist.metrics.classification import softmax

NUM_BINS = 15
_NUM_NULL_SETS = 200
_CELLS = 1000  # of the interval from 0 to 1
_TINY = 1e-12


def calibration_scores(
    logits: np.ndarray,  # (examples, classes)
    targets: np.ndarray,  # (examples,) class numbers
) -> dict[str, Any]:
    """Returns ece, its null floor, smooth_ece, brier, nll, and the bins of the ece."""
    probabilities = softmax(logits)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    hot = np.eye(logits.shape[1])[targets]
    return {
        "ece": binned_error(confidence, right),
        "ece_null_floor": null_floor(confidence),
        "smooth_ece": smooth_error(confidence, right),
        "brier": float(((probabilities - hot) ** 2).sum(axis=1).mean()),
        "nll": negative_log_likelihood(logits, targets),
        "bins": reliability_bins(confidence, right),
    }


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    probabilities = softmax(logits)[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(probabilities, _TINY)).mean())


def binned_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error in bins of equal mass (Nguyen & O'Connor 2015, arXiv 1508.05154); equal confidences share a bin."""
    bins = _equal_mass_bins(confidence)
    gaps = np.bincount(bins, weights=right.astype(float) - confidence, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def reliability_bins(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Returns number of examples, mean confidence and accuracy of each bin of equal mass, the least confident first."""
    bins = _equal_mass_bins(confidence)
    return [
        {
            "examples": int(members.sum()),
            "confidence": float(confidence[members].mean()),
            "accuracy": float(right[members].mean()),
        }
        for members in (bins == number for number in np.unique(bins))
    ]


def null_floor(confidence: np.ndarray) -> float:
    """The mean binned error if every confidence were exactly right."""
    rng = np.random.default_rng(0)
    return float(
        np.mean([binned_error(confidence, rng.random(len(confidence)) < confidence) for _ in range(_NUM_NULL_SETS)])
    )


def _equal_mass_bins(confidence: np.ndarray) -> np.ndarray:
    _, members, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return (first * NUM_BINS // len(confidence))[members]


def smooth_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Smooth calibration error (Blasiok & Nakkiran 2023, arXiv 2309.12236, definition 3): residuals smoothed by a reflected
    Gaussian whose width equals the error itself. On a grid of 1,000 cells."""
    cells = np.minimum((confidence * _CELLS).astype(int), _CELLS - 1)
    residuals = np.bincount(cells, weights=right.astype(float) - confidence, minlength=_CELLS) / len(confidence)
    low, high = 1 / _CELLS, 1.0
    while high - low > 0.5 / _CELLS:
        width = (low + high) / 2
        low, high = (width, high) if _smoothed_error(residuals, width) > width else (low, width)
    return _smoothed_error(residuals, high)


def _smoothed_error(residuals: np.ndarray, width: float) -> float:
    from scipy.ndimage import gaussian_filter1d

    return float(np.abs(gaussian_filter1d(residuals, width * _CELLS, mode="reflect", truncate=6)).sum())


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The divisor of the logits with the least negative log-likelihood (Guo et al. 2017, arXiv 1706.04599, section 4.2)."""
    from scipy.optimize import minimize_scalar

    result = minimize_scalar(
        lambda power: negative_log_likelihood(logits / np.exp(power), targets), bounds=(-3, 3), method="bounded"
    )
    return float(np.exp(result.x))
