"""Calibration errors against values by hand, scikit-learn, and the published implementation of the smooth one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from sft_dist.metrics.calibration import (
    binned_error,
    calibration_scores,
    fit_temperature,
    negative_log_likelihood,
    null_floor,
    reliability_bins,
    smooth_error,
)

# (seed, shift, relplot's value)
SMOOTH = [(0, 0.0, 0.04628), (1, 0.1, 0.09974), (2, 0.3, 0.30887)]


def over_sure(num, sharpness=2.0):
    """Logits that are as many times too large; the true temperature is the sharpness."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (num, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (rng.random(num)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)
    return logits * sharpness, np.minimum(targets, 2)


def test_the_binned_error_by_hand():
    confidence = np.repeat([0.9, 0.6], [10, 10])
    right = np.array([True] * 8 + [False] * 2 + [True] * 7 + [False] * 3)
    assert binned_error(confidence, right) == pytest.approx((abs(8 - 9) + abs(7 - 6)) / 20), (
        "equal confidences share a bin"
    )
    assert binned_error(np.ones(7), np.ones(7, dtype=bool)) == 0


def test_the_bins_are_those_of_the_binned_error():
    rng = np.random.default_rng(0)
    confidence = np.round(rng.uniform(0.4, 1, 200), 2)
    right = rng.random(200) < 0.7
    bins = reliability_bins(confidence, right)
    assert [entry["confidence"] for entry in bins] == sorted(entry["confidence"] for entry in bins)
    assert sum(entry["examples"] for entry in bins) == 200
    error = sum(entry["examples"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins) / 200
    assert error == pytest.approx(binned_error(confidence, right))


def test_the_floor_is_that_of_perfect_probabilities():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.5, 1, 100)
    floor = null_floor(confidence)
    measured = np.mean([binned_error(confidence, rng.random(100) < confidence) for _ in range(200)])
    assert floor == pytest.approx(measured, rel=0.1)
    assert 0.1 < floor < 0.15
    assert null_floor(np.tile(confidence, 100)) < floor / 5


@pytest.mark.parametrize(("seed", "shift", "published"), SMOOTH)
def test_the_smooth_error_is_that_of_its_authors(seed, shift, published):
    """relplot 1.0.3, `smECE` with its reflected Gaussian kernel."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.4, 1, 500)
    right = rng.random(500) < np.clip(confidence - shift, 0, 1)
    assert smooth_error(confidence, right) == pytest.approx(published, abs=0.001)


def test_brier_and_likelihood_are_those_of_scikit_learn():
    logits, targets = over_sure(300)
    scores = calibration_scores(logits, targets)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert scores["brier"] == pytest.approx(brier_score_loss(targets, probabilities, scale_by_half=False))
    assert scores["nll"] == pytest.approx(log_loss(targets, probabilities))


def test_the_temperature_undoes_what_makes_a_model_too_sure():
    logits, targets = over_sure(4000)
    temperature = fit_temperature(logits, targets)
    assert temperature == pytest.approx(2.0, rel=0.08)
    assert negative_log_likelihood(logits / temperature, targets) < negative_log_likelihood(logits, targets)
    before, after = calibration_scores(logits, targets), calibration_scores(logits / temperature, targets)
    assert before["ece"] > 3 * before["ece_null_floor"]
    assert after["ece"] < 2 * after["ece_null_floor"]
