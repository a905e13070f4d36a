"""Optimizer and learning-rate schedule from the recipe, by explicit tables; the optimizer's state as plain values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from sft_dist.checkpoints.optimizer_state import Piece, SavedState
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.machine import is_installed
from sft_dist.recipe.optimizers import NAMED_OPTIMIZERS
from sft_dist.recipe.schema import Adafactor, Adam, AdamW, NamedOptimizer, Schedule, Sgd, Train
from sft_dist.recipe.yaml_lines import similar_to
from sft_dist.tuning.layers import layer_depths

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
}


# Arguments that are settings of their own, or that the name has decided.
NO_OPTIONS = ("params", "lr", "weight_decay", "optim_bits", "is_paged", "args")


def build_optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """The recipe's optimizer over the weights that are trained. Raises UserError for options it does not have."""
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
    """Matrices (embeddings among them) with weight decay, apart from norms, biases and other vectors without; with
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
    """Most norms and biases are vectors; a few models have them with more dimensions, which their names tell."""
    is_norm = "norm" in type(owner).__name__.lower()
    is_bias = name.rpartition(".")[2].endswith("bias")
    is_scale = ".ia3_l." in name  # IA3's vectors are stored as (1, features)
    return parameter.ndim >= 2 and not is_scale and not is_norm and not is_bias


# ── optimizers by their name in transformers ────────────────────────────────────────────────────────────────────────
def _named(optimizer: NamedOptimizer, lr: float) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
    """The class and its arguments, from transformers' own table. Raises UserError."""
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
    known = [key for key in inspect.signature(make).parameters if key not in NO_OPTIONS]
    for key, value in optimizer.options.items():
        if key not in known:
            path, hint = f"train.optimizer.options.{key}", similar_to(key, known)
            raise UserError(
                Problem(f"{optimizer.name} has no such option", path, value=str(value), valid=tuple(known), hint=hint)
            )
        arguments[key] = tuple(value) if isinstance(value, list) else value
    return make, arguments


def _keep_embeddings_exact(model: nn.Module) -> None:
    """8-bit state is too coarse for embeddings, whose gradients are rare: bitsandbytes' advice, and what Trainer does."""
    from bitsandbytes.optim import GlobalOptimManager

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})


def before_training(optimizer: torch.optim.Optimizer) -> None:
    """Schedule-free optimizers train other weights than they judge and save: call this before a step's first forward.

    Does nothing for all others, nor when it has been called already.
    """
    if hasattr(optimizer, "train"):
        optimizer.train()


def before_judging(optimizer: torch.optim.Optimizer) -> None:
    """Puts the averaged weights of a schedule-free optimizer in place: call this before validating and before saving.

    Going there and back rounds in the last bit, so a run that saves at other steps (it was asked to stop) differs there.
    """
    if hasattr(optimizer, "eval"):
        optimizer.eval()


# ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def names_of(model: nn.Module) -> dict[nn.Parameter, str]:
    """Trained weight -> its name, which is the same under every strategy."""
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


def state_pieces(optimizer: torch.optim.Optimizer, model: nn.Module, mine: Callable[[int], bool]) -> Iterator[Piece]:
    """State of the weights whose number in the model is `mine`, copied to the CPU.

    A slot that is no tensor says so in its name: `step:int`.
    """
    for number, (parameter, name) in enumerate(names_of(model).items()):
        if mine(number):
            for slot, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    copy = value.detach().to("cpu", copy=True).contiguous()
                    elementwise = copy.shape == parameter.shape and copy.ndim > 0
                    yield Piece(name, slot, 0, copy.flatten()) if elementwise else Piece(name, slot, None, copy)
                else:
                    yield Piece(name, f"{slot}:{type(value).__name__}", None, _as_tensor(value))


def load_pieces(optimizer: torch.optim.Optimizer, model: nn.Module, saved: SavedState) -> None:
    """The reverse, for an optimizer that holds whole weights. Raises ValueError when the state is of other weights."""
    names = names_of(model)
    check_names(saved, set(names.values()))
    numbers: dict[nn.Parameter, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            numbers[parameter] = len(numbers)
    state: dict[int, dict[str, Any]] = {}
    for parameter, name in names.items():
        slots: dict[str, Any] = {
            slot: saved.read(name, slot, 0, parameter.numel()).view(parameter.shape) for slot in saved.slots(name)
        }
        for slot in saved.whole_slots(name):
            key, _, kind = slot.partition(":")
            slots[key] = _PLAIN[kind](saved.whole(name, slot))
        if slots:
            state[numbers[parameter]] = slots
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# Kind of a slot -> how it is read. Numbers stay numbers: some optimizers count with them.
_PLAIN: dict[str, Callable[[Tensor], Any]] = {
    "": lambda tensor: tensor,
    "int": lambda tensor: int(tensor.item()),
    "float": lambda tensor: float(tensor.item()),
    "bool": lambda tensor: bool(tensor.item()),
    "NoneType": lambda tensor: None,
}


def _as_tensor(value: Any) -> Tensor:
    if value is None:
        return torch.empty(0)
    if type(value) not in (int, float, bool):
        raise ValueError(f"an optimizer's state has a {type(value).__name__}, which cannot be saved")
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def check_names(saved: SavedState, trained: set[str]) -> None:
    if strange := {name for name in saved.names() if "." in name} - trained:
        raise ValueError(f"{saved.folder}: optimizer state of {min(strange)}, which is not trained in this run")


def groups_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What changes in the groups while training (lr, and what some optimizers count there), as plain values."""
    return [{key: _plain(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def load_groups_state(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: _unplain(value) for key, value in saved.items()})


def _plain(value: Any) -> Any:
    """JSON has no tensors: a scalar one becomes its number and its type."""
    if isinstance(value, Tensor):
        return {"tensor": value.item(), "dtype": str(value.dtype).removeprefix("torch.")}
    return value


def _unplain(value: Any) -> Any:
    if isinstance(value, dict):
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    return tuple(value) if isinstance(value, list) else value


# ── schedule ────────────────────────────────────────────────────────────────────────────────────────────────────────
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
        raise UserError(Problem(str(error), path="train.schedule", value=schedule.name)) from error


def schedule_state(schedule: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    """The schedule's plain values; its function comes from the recipe again."""
    return {key: value for key, value in schedule.state_dict().items() if key != "lr_lambdas"}


def load_schedule_state(schedule: torch.optim.lr_scheduler.LRScheduler, state: dict[str, Any]) -> None:
    schedule.load_state_dict({**state, "lr_lambdas": [None] * len(state["base_lrs"])})
