"""The loss of tokens in chunks: that of all at once, to the bit, without keeping all of it in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sft_dist.losses import tokens as losses_text
from sft_dist.losses.classification import CrossEntropy, Focal
from sft_dist.losses.targets import IGNORED
from sft_dist.losses.tokens import TokenLoss

VOCABULARY = 50


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 40, VOCABULARY, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(0, VOCABULARY, (3, 40), generator=generator)
    targets[:, :7] = IGNORED
    return logits, targets


@pytest.mark.parametrize("inner", [CrossEntropy(None, 0.1), Focal()], ids=["cross-entropy", "focal"])
def test_chunks_keep_their_logits_only_and_change_nothing(inner, monkeypatch):
    monkeypatch.setattr(losses_text, "CHUNK", 16)
    logits, targets = batch()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        found = TokenLoss(inner).total(logits, targets)
    (gradient,) = torch.autograd.grad(found, logits)
    wide = [one for one in kept if one.dtype == torch.float32 and one.numel() >= 16 * VOCABULARY]
    assert not wide, "fp32 of a chunk outlives it"

    there = targets != IGNORED
    plain = logits[:, :0].float().sum()
    for some, wanted in zip(logits[there].split(16), targets[there].split(16), strict=True):
        plain = plain + inner.total(some.float(), wanted)
    assert torch.equal(found, plain)
    assert torch.equal(gradient, torch.autograd.grad(plain, logits)[0])


def test_losses_of_single_rows_add_up_to_the_total():
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 5, 4), torch.randint(0, 4, (3, 5))
    targets[1, 2:], targets[2] = IGNORED, IGNORED
    loss = TokenLoss(CrossEntropy(None, 0.1))
    losses = loss.of_each(logits, targets)
    assert losses[2] == 0
    torch.testing.assert_close(losses.sum(), loss.total(logits, targets))
    torch.testing.assert_close(losses[1], loss.total(logits[1:2, :2], targets[1:2, :2]))
