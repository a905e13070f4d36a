"""How fast this machine trains a recipe: a few micro-batches forwards and backwards, in this process, on one device."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from sft_dist.batches.plan import example_rng
from sft_dist.data.encode import collate
from sft_dist.data.rows import Examples
from sft_dist.engines.precision import autocast
from sft_dist.recipe.arithmetic import batch_of
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import Task
from sft_dist.tasks.models import build_model

MOST_BATCHES = 6  # the first, which warms up, is not counted
MOST_S = 60.0


def measured_rate(recipe: Recipe, task: Task, processor: Any, train: Examples) -> tuple[float, str]:
    """Examples a second of one process, and what was measured. The optimizer's step, which is small beside it, is not included."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = build_model(recipe, task, processor).to(device).train()
    loss = task.build_loss(train)
    size = min(batch_of(recipe, 1).micro_batch, len(train))
    order = np.random.default_rng(recipe.train.seed).permutation(len(train))
    examples, spent, started = 0, 0.0, time.monotonic()
    for number in range(MOST_BATCHES):
        indices = np.resize(np.roll(order, -number * size), size)
        rngs = [example_rng(recipe.train.seed, 0, int(index)) for index in indices]
        since = time.monotonic()
        inputs, targets = collate(task, train, indices, processor, rngs)
        with autocast(device, recipe.train.precision):
            outputs = task.forward(model, send_to_device(inputs, device))
        loss.total(outputs, send_to_device(targets, device)).sum().backward()
        model.zero_grad(set_to_none=True)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        if number:
            examples, spent = examples + size, spent + time.monotonic() - since
        if number and time.monotonic() - started > MOST_S:
            break
    rate = examples / spent
    return rate, f"{rate:.3g} examples/s measured here, by one process on {device.type}"
