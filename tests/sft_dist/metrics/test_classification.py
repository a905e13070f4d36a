"""Scores against values worked out by hand or by another route; undefined scores are None."""

import numpy as np
import pytest

from sft_dist.metrics.classification import multi_label_scores, regression_scores, single_label_scores

TARGETS = np.array([0, 0, 1, 1, 1])
LOGITS = np.array([[2.0, 0], [0, 1], [0, 3], [0, 2], [1, 0.5]])  # right, wrong, right, right, wrong


def test_binary_scores_by_hand():
    scores = single_label_scores(LOGITS, TARGETS)
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["precision_macro"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["recall_macro"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["f1_weighted"] == pytest.approx(2 / 5 * 0.5 + 3 / 5 * 2 / 3)
    # pairs (negative, positive) ranked right: of 6, those where the positive has the larger margin
    margins = LOGITS[:, 1] - LOGITS[:, 0]
    pairs = [(margins[p] > margins[n]) + 0.5 * (margins[p] == margins[n]) for n in (0, 1) for p in (2, 3, 4)]
    assert scores["roc_auc"] == pytest.approx(np.mean(pairs))
    assert scores["confusion_matrix"] == [[1, 1], [1, 2]]


def test_a_class_that_never_occurs_leaves_the_area_defined_over_the_others():
    logits = np.eye(3)[[0, 1, 0, 1]]
    scores = single_label_scores(logits, np.array([0, 1, 0, 1]))
    assert scores["roc_auc"] == pytest.approx(1.0)
    assert scores["recall_macro"] == pytest.approx(1.0)


def test_macro_averages_are_over_the_classes_that_occur():
    perfect = single_label_scores(np.eye(3)[[1, 1]], np.array([1, 1]))
    assert (perfect["f1_macro"], perfect["precision_macro"], perfect["recall_macro"]) == (1.0, 1.0, 1.0)
    assert perfect["confusion_matrix"] == [[0, 0, 0], [0, 2, 0], [0, 0, 0]]
    # 2 is predicted and never true: it counts, with nothing right.
    assert single_label_scores(np.eye(4)[[1, 2]], np.array([1, 1]))["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)


def test_macro_averages_of_many_labels_are_over_the_classes_that_occur():
    logits, targets = np.array([[3.0, -3, -3], [3, -3, -3]]), np.array([[1, 0, 0], [1, 0, 0]])
    scores = multi_label_scores(logits, targets, threshold=0.5)
    assert (scores["f1_macro"], scores["f1_micro"], scores["f1_weighted"]) == (1.0, 1.0, 1.0)
    nothing = multi_label_scores(-np.abs(logits), 0 * targets, threshold=0.5)
    assert (nothing["f1_macro"], nothing["f1_micro"], nothing["exact_match"]) == (None, None, 1.0)


def test_area_of_a_single_class_is_undefined():
    assert single_label_scores(LOGITS[:2], TARGETS[:2])["roc_auc"] is None


def test_multi_label_scores_by_hand():
    logits = np.array([[3.0, -3], [3, 3], [-3, 3], [-3, -3]])
    targets = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    scores = multi_label_scores(logits, targets, threshold=0.5)
    assert scores["exact_match"] == pytest.approx(2 / 4)
    assert scores["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert multi_label_scores(logits, targets, threshold=0.99)["recall_micro"] == 0


def test_regression_scores_by_hand():
    scores = regression_scores(np.array([1.0, 2, 4]), np.array([1.0, 2, 3]))
    assert scores["mse"] == pytest.approx(1 / 3)
    assert scores["mae"] == pytest.approx(1 / 3)
    assert scores["r2"] == pytest.approx(1 - 1 / 2)
    assert scores["spearman"] == pytest.approx(1.0)
    assert regression_scores(np.ones(3), np.array([1.0, 2, 3]))["pearson"] is None


# ── multi-label with a single class ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("targets", "predicted"),
    [
        ([1, 1, 0, 0, 0], [0, 0, 0, 0, 0]),
        ([1, 1, 0, 0, 0], [1, 0, 1, 1, 0]),
        ([0, 0, 0], [1, 0, 0]),
        ([1, 1, 1], [0, 0, 0]),
        ([1, 1, 1], [1, 1, 0]),
    ],
)
def test_a_single_label_is_scored_by_its_presence(targets, predicted):
    pairs = list(zip(targets, predicted, strict=True))
    hits, extra, missed = pairs.count((1, 1)), pairs.count((0, 1)), pairs.count((1, 0))
    scores = multi_label_scores(np.array([[6.0 * p - 3] for p in predicted]), np.array(targets)[:, None], 0.5)
    for average in ("macro", "micro", "weighted"):
        # Weights of absent classes are all 0, which scikit-learn averages to 0.
        assert scores[f"precision_{average}"] == pytest.approx(hits / max(hits + extra, 1))
        assert scores[f"recall_{average}"] == pytest.approx(hits / max(hits + missed, 1))
        assert scores[f"f1_{average}"] == pytest.approx(2 * hits / (2 * hits + extra + missed))
    assert scores["exact_match"] == pytest.approx(sum(t == p for t, p in pairs) / len(pairs))
    assert scores["confusion_matrix"] == [[[pairs.count((0, 0)), extra], [missed, hits]]]


def test_a_single_label_that_neither_occurs_nor_is_predicted_has_no_f1():
    scores = multi_label_scores(np.full((3, 1), -3.0), np.zeros((3, 1), dtype=int), 0.5)
    assert (scores["f1_macro"], scores["roc_auc"], scores["exact_match"]) == (None, None, 1.0)


# ── undefined ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("targets", "predicted"), [([0, 1, 1], [1, 1, 1]), ([1, 1, 1], [0, 1, 1]), ([1, 1], [1, 1])])
def test_mcc_of_one_class_alone_is_undefined(targets, predicted):
    scores = single_label_scores(np.eye(2)[predicted], np.array(targets))
    assert scores["mcc"] is None
    assert scores["accuracy"] == pytest.approx(np.mean(np.equal(targets, predicted)))


def test_mcc_of_chance_is_zero_and_not_undefined():
    assert single_label_scores(np.eye(2)[[0, 1, 0, 1]], np.array([0, 0, 1, 1]))["mcc"] == pytest.approx(0.0)


@pytest.mark.parametrize("predicted", [[2.0, 2, 2], [1.0, 2, 3]])
def test_r2_of_constant_targets_is_undefined(predicted):
    scores = regression_scores(np.array(predicted), np.full(3, 2.0))
    assert (scores["r2"], scores["pearson"], scores["spearman"]) == (None, None, None)
    assert scores["mse"] == pytest.approx(np.mean((np.array(predicted) - 2) ** 2))
