"""Optimizer and learning-rate schedule from the recipe, by explicit tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Adafactor, Adam, AdamW, Optimizer, Schedule, Sgd, Train
from sft_dist.state import Piece, SavedState

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


def names_of(model: nn.Module) -> dict[nn.Parameter, str]:
    """Trained weight -> its name, which is the same under every strategy."""
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


def state_pieces(
    optimizer: torch.optim.Optimizer, model: nn.Module, mine: Callable[[int], bool]
) -> Iterator[Piece]:
    """State of the weights whose number in the model is `mine`, copied to the CPU."""
    for number, (parameter, name) in enumerate(names_of(model).items()):
        if mine(number):
            for slot, value in optimizer.state.get(parameter, {}).items():
                copy = torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
                elementwise = copy.shape == parameter.shape and copy.ndim > 0
                yield Piece(name, slot, 0, copy.flatten()) if elementwise else Piece(name, slot, None, copy)


def load_pieces(optimizer: torch.optim.Optimizer, model: nn.Module, saved: SavedState) -> None:
    """The reverse, for an optimizer that holds whole weights. Raises ValueError when the state is of other weights."""
    names = names_of(model)
    check_names(saved, set(names.values()))
    numbers: dict[nn.Parameter, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            numbers[parameter] = len(numbers)
    state: dict[int, dict[str, Tensor]] = {}
    for parameter, name in names.items():
        slots = {slot: saved.read(name, slot, 0, parameter.numel()).view(parameter.shape) for slot in saved.slots(name)}
        slots |= {slot: saved.whole(name, slot) for slot in saved.whole_slots(name)}
        if slots:
            state[numbers[parameter]] = slots
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_names(saved: SavedState, trained: set[str]) -> None:
    if strange := {name for name in saved.names() if "." in name} - trained:
        raise ValueError(f"{saved.folder}: optimizer state of {min(strange)}, which is not trained in this run")


def groups_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What changes in the groups while training (lr, and what some optimizers count there), as plain values."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def load_groups_state(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})


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
