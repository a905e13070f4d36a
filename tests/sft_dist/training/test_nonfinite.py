"""Nothing that is no number gets into a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sft_dist.run.failures import TrainingError
from sft_dist.training.nonfinite import check_weights


def model() -> nn.Module:
    found = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    found.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    return found


def check(model: nn.Module) -> None:
    training: Any = SimpleNamespace(engine=SimpleNamespace(raw_model=model), progress=SimpleNamespace(step=7))
    check_weights(training, model.state_dict())


def test_running_statistics_of_a_batch_that_was_left_out_are_found() -> None:
    one = model()
    check(one)
    one(torch.full((2, 1, 3, 3), float("nan")))  # no gradient, no step
    with pytest.raises(TrainingError, match=r"1\.running_mean and 1 more tensors"):
        check(one)


def test_a_trained_weight_may_not_be_infinite() -> None:
    one = model()
    with torch.no_grad():
        one[0].weight.fill_(float("inf"))  # type: ignore[index]
    with pytest.raises(TrainingError, match=r"step 7 .* 0\.weight;"):
        check(one)
