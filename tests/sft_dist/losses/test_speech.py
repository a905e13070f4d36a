"""The losses of transcripts, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sft_dist.losses.speech import CtcLoss, TranscriptLoss
from sft_dist.losses.targets import IGNORED


def test_ctc_loss_by_hand():
    """Two frames, one symbol: the paths are aa, a-, -a."""
    p = torch.tensor([[0.4, 0.6], [0.3, 0.7]])  # (frames, symbols); 0 is the blank
    targets = {"labels": torch.tensor([[1]]), "frames": torch.tensor([2]), "label_lengths": torch.tensor([1])}
    total = CtcLoss(0).total(p.log()[None], targets)
    assert total.item() == pytest.approx(-math.log(0.6 * 0.7 + 0.6 * 0.3 + 0.4 * 0.7), rel=1e-5)


def test_ctc_needs_a_frame_between_equal_symbols():
    for frames, finite in ((5, True), (4, False)):
        targets = {
            "labels": torch.tensor([[1, 2, 2, 3]]),
            "frames": torch.tensor([frames]),
            "label_lengths": torch.tensor([4]),
        }
        assert torch.isfinite(CtcLoss(0).total(torch.zeros(1, 5, 4), targets)) == finite


def test_the_loss_of_a_transcript_sums_its_tokens_without_padding():
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)], [5.0, 0.0]]])  # (batch, tokens, vocabulary)
    total = TranscriptLoss().total(logits, {"labels": torch.tensor([[0, 1, IGNORED]])})
    assert total.item() == pytest.approx(math.log(2) + math.log(4 / 3), rel=1e-6)


def test_losses_of_single_transcripts_add_up_to_the_total():
    torch.manual_seed(0)
    lengths = torch.tensor([2, 1])
    ctc = {"labels": torch.tensor([[1, 2], [3, 0]]), "frames": torch.tensor([6, 4]), "label_lengths": lengths}
    tokens = {"labels": torch.tensor([[1, 2, 3, 0, 1, 2], [3, 1, *[IGNORED] * 4]])}
    for loss, targets in ((CtcLoss(0), ctc), (TranscriptLoss(), tokens)):
        outputs = torch.randn(2, 6, 4)
        losses = loss.of_each(outputs, targets)
        alone = [loss.total(outputs[i : i + 1], {name: v[i : i + 1] for name, v in targets.items()}) for i in range(2)]
        torch.testing.assert_close(losses, torch.stack(alone))
        torch.testing.assert_close(losses.sum(), loss.total(outputs, targets))
