"""Focal and Huber losses against their formulas and torch, however the batch is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sft_dist.losses.classification import BinaryFocal, Focal, Huber

LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
CLASSES = np.array([0, 1, 2, 2, 2, 2, 1, 0, 2, 2, 2, 1])
HOT = (np.random.default_rng(0).random((12, 3)) > 0.6).astype(np.float32)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


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
