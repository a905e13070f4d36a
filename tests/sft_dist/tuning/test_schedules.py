"""Every schedule of the schema gives the learning rates of transformers, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Schedule
from sft_dist.tuning.schedules import share_of_peak

SCHEDULES: list[dict[str, Any]] = [
    {"name": "linear"},
    {"name": "cosine"},
    {"name": "constant"},
    {"name": "constant_with_warmup"},
    {"name": "inverse_sqrt"},
    {"name": "cosine_with_restarts", "num_cycles": 3},
    {"name": "cosine_with_min_lr", "min_lr_rate": 0.07},
    {"name": "polynomial", "power": 2.5, "lr_end": 1e-6},
]
PEAK = 3e-4


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("settings", SCHEDULES, ids=lambda settings: settings["name"])
def test_learning_rates_are_those_of_transformers(settings, warmup):
    from transformers import get_scheduler

    schedule = TypeAdapter(Schedule).validate_python(settings)
    share = share_of_peak(schedule, warmup, 37, PEAK)
    weights = [torch.nn.Parameter(torch.zeros(1))]
    options = {key: value for key, value in settings.items() if key != "name"}
    theirs = get_scheduler(
        settings["name"],
        torch.optim.SGD(weights, lr=PEAK),
        num_warmup_steps=warmup,
        num_training_steps=37,
        scheduler_specific_kwargs=options,
    )
    assert [PEAK * share(step) for step in range(40)] == [PEAK * theirs.lr_lambdas[0](step) for step in range(40)]


def test_a_polynomial_must_fall():
    schedule = TypeAdapter(Schedule).validate_python({"name": "polynomial", "lr_end": PEAK})
    with pytest.raises(UserError, match="lr_end"):
        share_of_peak(schedule, 0, 37, PEAK)
