"""Optimizer and learning-rate schedule from the recipe, by explicit tables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.machine import is_installed
from sft_dist.recipe.optimizers import NAMED_OPTIMIZERS
from sft_dist.recipe.schema import Adafactor, Adam, AdamW, NamedOptimizer, Schedule, Sgd, Train
from sft_dist.recipe.suggest import similar_to
from sft_dist.tuning.layers import layer_depths
from sft_dist.tuning.schedules import share_of_peak

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
}


# Arguments that are settings of their own, or that the name has decided.
NO_OPTIONS = ("params", "lr", "weight_decay", "optim_bits", "is_paged", "args")


def build_optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """Builds the recipe's optimizer over the trained weights. Raises UserError for options it does not have."""
    groups, optimizer = weight_groups(model, train), train.optimizer
    try:
        match optimizer:
            case NamedOptimizer():
                make, options = _named(optimizer, train.lr)
                if options.get("optim_bits") == 8:
                    _keep_embeddings_exact(model)
                return make(groups, **options)
            case AdamW() | Adam():
                options = {"betas": (optimizer.betas[0], optimizer.betas[1]), "eps": optimizer.eps}
            case Sgd():
                options = {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
            case Adafactor():
                options = {}
        return OPTIMIZERS[optimizer.name](groups, lr=train.lr, **options)
    except (ValueError, TypeError) as error:  # options that are right by themselves and exclude each other
        raise UserError(Problem(str(error), path="train.optimizer", value=optimizer.name)) from error


def weight_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Returns matrices (embeddings among them) with weight decay, and norms, biases and other vectors without; with
    `layer_decay` each of the two for every depth of the model, the head first."""
    depths = layer_depths(model) if train.layer_decay is not None else {}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    owners = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = not is_decayed(name, parameter, owners[name.rpartition(".")[0]])
            groups.setdefault((depths.get(name, 0), spared), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if spared else train.optimizer.weight_decay,
            "lr": train.lr * (train.layer_decay or 1.0) ** depth,
        }
        for (depth, spared), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def is_decayed(name: str, parameter: nn.Parameter, owner: nn.Module) -> bool:
    """Whether a weight is decayed. Most norms and biases are vectors; a few models have them with more dimensions, which
    their names reveal."""
    is_norm = "norm" in type(owner).__name__.lower()
    is_bias = name.rpartition(".")[2].endswith("bias")
    # Vectors that PEFT stores with more dimensions: IA3's as (1, features), DoRA's of convolutions as (1, channels, 1, 1).
    is_scale = ".ia3_l." in name or ".lora_magnitude_vector." in name
    return parameter.ndim >= 2 and not is_scale and not is_norm and not is_bias


# ── optimizers by their name in transformers ────────────────────────────────────────────────────────────────────────
def _named(optimizer: NamedOptimizer, lr: float) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
    """Returns the class and its arguments, from transformers' own table. Raises UserError."""
    needs = NAMED_OPTIMIZERS[optimizer.name]
    if needs.module and not is_installed(needs.module):
        hint = f"pip install '{needs.package}'"
        raise UserError(
            Problem("needs a package that is not installed", "train.optimizer", value=optimizer.name, hint=hint)
        )
    from transformers import Trainer  # takes seconds to import
    from transformers.training_args import OptimizerNames

    # What the table reads of TrainingArguments. A real one would set up devices and processes anew.
    settings = SimpleNamespace(
        optim=OptimizerNames(optimizer.name),
        optim_args=None,
        learning_rate=lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        warmup_steps=0,  # the schedule warms up
    )
    make, arguments = Trainer.get_optimizer_cls_and_kwargs(settings)
    options = [key for key in inspect.signature(make).parameters if key not in NO_OPTIONS]
    for key, value in optimizer.options.items():
        if key not in options:
            path, hint = f"train.optimizer.options.{key}", similar_to(key, options)
            raise UserError(
                Problem(f"{optimizer.name} has no such option", path, value=str(value), valid=tuple(options), hint=hint)
            )
        arguments[key] = tuple(value) if isinstance(value, list) else value
    return make, arguments


def _keep_embeddings_exact(model: nn.Module) -> None:
    """Keeps the state of embeddings in 32 bits, as bitsandbytes advises and Trainer does: 8 bits are too coarse for their
    rare gradients."""
    from bitsandbytes.optim import GlobalOptimManager

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})


def before_training(optimizer: torch.optim.Optimizer) -> None:
    """Puts the training weights of a schedule-free optimizer in place, which evaluates and saves others: call this before a
    step's first forward.

    Does nothing for all others, nor when it has been called already.
    """
    if hasattr(optimizer, "train"):
        optimizer.train()


def before_evaluation(optimizer: torch.optim.Optimizer) -> None:
    """Puts the averaged weights of a schedule-free optimizer in place: call this before validating and before saving.

    Going there and back rounds in the last bit, so a run that saves at other steps (it was asked to stop) differs there.
    """
    if hasattr(optimizer, "eval"):
        optimizer.eval()


# ── schedule ────────────────────────────────────────────────────────────────────────────────────────────────────────
def build_schedule(
    optimizer: torch.optim.Optimizer, schedule: Schedule, warmup_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Builds the schedule, which is stepped once per optimizer step, whatever the world size. Raises UserError."""
    share = share_of_peak(schedule, warmup_steps, total_steps, optimizer.defaults["lr"])
    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def schedule_state(schedule: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    """Returns the schedule's plain values; its function is built from the recipe again."""
    return {key: value for key, value in schedule.state_dict().items() if key != "lr_lambdas"}


def load_schedule_state(schedule: torch.optim.lr_scheduler.LRScheduler, state: dict[str, Any]) -> None:
    schedule.load_state_dict({**state, "lr_lambdas": [None] * len(state["base_lrs"])})
