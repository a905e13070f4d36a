"""Each loss against its formula and torch's own mean over the whole batch, however the batch is divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sft_dist.losses.classification import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    BinaryFocal,
    Focal,
    Huber,
    build_loss,
)
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import BinaryCrossEntropyLoss, CrossEntropyLoss, FocalLoss

LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
CLASSES = np.array([0, 1, 2, 2, 2, 2, 1, 0, 2, 2, 2, 1])
HOT = (np.random.default_rng(0).random((12, 3)) > 0.6).astype(np.float32)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5])
LABELS = ["a", "b", "c"]


def cut_and_summed(loss, logits, targets):
    """What training does: sums over unequal pieces, divided by the weight of all."""
    pieces = [slice(0, 1), slice(1, 6), slice(6, 12)]
    total = sum(loss.total(logits[piece], torch.from_numpy(targets[piece])) for piece in pieces)
    return total / float(loss.weights(targets).sum())


def test_focal_of_one_example_by_hand():
    logits = torch.log(
        torch.tensor([[0.9, 0.1]])
    )  # the paper's example: at gamma 2 p = 0.9 counts a hundredth of its CE
    found = Focal(2.0).total(logits, torch.tensor([0])).item()
    assert found == pytest.approx(0.01 * -np.log(0.9), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_is_the_formula(gamma, weights):
    p = torch.softmax(LOGITS, -1)[range(12), CLASSES]
    w = torch.ones(12) if weights is None else weights[CLASSES]
    expected = (w * (1 - p) ** gamma * -p.log()).sum() / w.sum()
    torch.testing.assert_close(cut_and_summed(Focal(gamma, weights), LOGITS, CLASSES), expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_without_gamma_is_cross_entropy(weights):
    expected = nn.CrossEntropyLoss(weight=weights)(LOGITS, torch.from_numpy(CLASSES))
    torch.testing.assert_close(cut_and_summed(Focal(0.0, weights), LOGITS, CLASSES), expected)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_binary_focal_is_the_formula(gamma, weights):
    targets = torch.from_numpy(HOT)
    p = torch.sigmoid(LOGITS)
    p_t = torch.where(targets > 0, p, 1 - p)
    w = torch.where(targets > 0, torch.ones(3) if weights is None else weights, torch.ones(3))
    expected = (w * (1 - p_t) ** gamma * -p_t.log()).mean()
    torch.testing.assert_close(cut_and_summed(BinaryFocal(gamma, weights), LOGITS, HOT), expected)


def test_binary_focal_without_gamma_is_binary_cross_entropy():
    expected = nn.BCEWithLogitsLoss(pos_weight=WEIGHTS)(LOGITS, torch.from_numpy(HOT))
    torch.testing.assert_close(cut_and_summed(BinaryFocal(0.0, WEIGHTS), LOGITS, HOT), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_certain_answers_have_finite_gradients(gamma):
    for loss, targets in ((Focal(gamma), torch.tensor([0, 1])), (BinaryFocal(gamma), torch.eye(2))):
        logits = torch.tensor([[200.0, -200.0], [200.0, -200.0]], requires_grad=True)
        loss.total(logits, targets).backward()
        assert torch.isfinite(logits.grad).all(), loss


@pytest.mark.parametrize("delta", [0.3, 1.0, 5.0])
def test_huber_equals_torch(delta):
    values = np.random.default_rng(1).random(12).astype(np.float32) * 4
    found = cut_and_summed(Huber(delta), LOGITS[:, :1], values)
    torch.testing.assert_close(found, nn.HuberLoss(delta=delta)(LOGITS[:, 0], torch.from_numpy(values)))
    by_hand = Huber(1.0).total(torch.tensor([[0.5], [3.0]]), torch.tensor([0.0, 0.0]))
    assert by_hand.item() == pytest.approx(0.5 * 0.25 + (3 - 0.5))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5], {"b": 3.0}, "balanced"])
def test_cross_entropy_equals_torch(smoothing, weights):
    setting = CrossEntropyLoss(name="cross-entropy", label_smoothing=smoothing, class_weights=weights)
    expected_weights = {
        "None": None,
        "[1.0, 2.0, 0.5]": torch.tensor([1.0, 2.0, 0.5]),
        "{'b': 3.0}": torch.tensor([1.0, 3.0, 1.0]),
        "balanced": torch.tensor([12 / (3 * 2), 12 / (3 * 3), 12 / (3 * 7)]),
    }[str(weights)]
    reference = nn.CrossEntropyLoss(weight=expected_weights, label_smoothing=smoothing)
    found = cut_and_summed(build_loss(setting, SINGLE_LABEL, LABELS, lambda: CLASSES), LOGITS, CLASSES)
    torch.testing.assert_close(found, reference(LOGITS, torch.from_numpy(CLASSES)))


@pytest.mark.parametrize("name", ["cross-entropy", "focal"])
def test_a_class_without_rows_weighs_nothing_when_balanced(name):
    """It weighed as much as all others together, and label smoothing pulled every example towards it."""
    setting = {"cross-entropy": CrossEntropyLoss, "focal": FocalLoss}[name](name=name, class_weights="balanced")
    loss = build_loss(setting, SINGLE_LABEL, ["absent", *LABELS], lambda: CLASSES + 1)
    assert loss.class_weights.tolist() == pytest.approx([0, 12 / (3 * 2), 12 / (3 * 3), 12 / (3 * 7)])
    assert loss.weights(CLASSES + 1).sum() == pytest.approx(12)


def test_label_smoothing_does_not_pull_towards_a_class_without_rows():
    setting = CrossEntropyLoss(name="cross-entropy", label_smoothing=0.1, class_weights="balanced")
    loss = build_loss(setting, SINGLE_LABEL, ["absent", *LABELS], lambda: CLASSES + 1)
    logits = torch.zeros(12, 4, requires_grad=True)
    targets = torch.from_numpy(CLASSES + 1)
    for _ in range(200):
        gradient = torch.autograd.grad(loss.total(logits, targets), logits)[0]
        logits = (logits - gradient).detach().requires_grad_()
    assert torch.equal(logits.argmax(1), targets)
    assert logits.softmax(1)[:, 0].max() < 0.02


def test_a_class_without_positives_keeps_its_weight_when_balanced():
    hot = np.array([[1, 0], [0, 0], [0, 0], [1, 0]], dtype=np.float32)
    loss = build_loss(BinaryCrossEntropyLoss(name="binary-cross-entropy", class_weights="balanced"), MULTI_LABEL, ["a", "b"], lambda: hot)  # fmt: skip
    assert loss.class_weights.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5], "balanced"])
def test_binary_cross_entropy_equals_torch(weights):
    setting = BinaryCrossEntropyLoss(name="binary-cross-entropy", class_weights=weights)
    positives = HOT.sum(0)
    expected = {"None": None, "balanced": torch.tensor((12 - positives) / positives)}.get(
        str(weights), torch.tensor([1.0, 2.0, 0.5])
    )
    reference = nn.BCEWithLogitsLoss(pos_weight=expected)
    found = cut_and_summed(build_loss(setting, MULTI_LABEL, LABELS, lambda: HOT), LOGITS, HOT)
    torch.testing.assert_close(found, reference(LOGITS, torch.from_numpy(HOT)))


def test_mse_equals_torch():
    values = np.random.default_rng(1).random(12).astype(np.float32)
    found = cut_and_summed(build_loss(None, REGRESSION, [], lambda: values), LOGITS[:, :1], values)
    torch.testing.assert_close(found, nn.MSELoss()(LOGITS[:, 0], torch.from_numpy(values)))


@pytest.mark.parametrize("weights", [[1.0], {"d": 1.0}])
def test_weights_that_do_not_fit_the_labels_are_named(weights):
    setting = CrossEntropyLoss(name="cross-entropy", class_weights=weights)
    with pytest.raises(UserError, match="class_weights"):
        build_loss(setting, SINGLE_LABEL, LABELS, lambda: CLASSES)


def test_a_loss_that_does_not_fit_the_labels_is_named():
    with pytest.raises(UserError, match="focal does not fit these labels; the default is MeanSquaredError"):
        build_loss(FocalLoss(name="focal"), REGRESSION, [], lambda: CLASSES)
