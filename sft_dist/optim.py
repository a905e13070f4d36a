"""Optimizer and learning-rate schedule from the recipe, by explicit tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Adafactor, Adam, AdamW, Optimizer, Schedule, Sgd, Train

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
}


def build_optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """Two groups: matrices with weight decay; norms, biases and other vectors without."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": train.optimizer.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    options = _options(train.optimizer)
    try:
        return OPTIMIZERS[train.optimizer.name]([group for group in groups if group["params"]], lr=train.lr, **options)
    except ValueError as error:  # options that are right by themselves and exclude each other
        raise UserError(Problem(str(error), path="train.optimizer", found=train.optimizer.name)) from error


def trained_names(model: nn.Module) -> list[str]:
    """Names of the trained weights in the optimizer's own order, for a checkpoint that does not depend on indices."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name for name, p in trained if p.ndim >= 2] + [name for name, p in trained if p.ndim < 2]


def _options(optimizer: Optimizer) -> dict[str, Any]:
    match optimizer:
        case AdamW() | Adam():
            return {"betas": (optimizer.betas[0], optimizer.betas[1]), "eps": optimizer.eps}
        case Sgd():
            return {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
        case Adafactor():
            return {}


def build_schedule(
    optimizer: torch.optim.Optimizer, schedule: Schedule, warmup_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Stepped once an optimizer step, whatever the world size."""
    try:
        return get_scheduler(
            schedule.name,
            optimizer,
            num_warmup_steps=warmup_steps,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=schedule.model_dump(exclude={"name"}),
        )
    except ValueError as error:
        raise UserError(Problem(str(error), path="train.schedule", found=schedule.name)) from error


def schedule_state(schedule: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    """The schedule's plain values; its function comes from the recipe again."""
    return {key: value for key, value in schedule.state_dict().items() if key != "lr_lambdas"}


def load_schedule_state(schedule: torch.optim.lr_scheduler.LRScheduler, state: dict[str, Any]) -> None:
    schedule.load_state_dict({**state, "lr_lambdas": [None] * len(state["base_lrs"])})
