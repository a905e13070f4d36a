"""Train part of the model: which layers, embeddings and further weights keep their values."""

from __future__ import annotations

import re

from torch import nn

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import FreezeTuning


def freeze(model: nn.Module, tuning: FreezeTuning) -> None:
    """Train the head, what stands after the body's layers (pooler, last norm), and what the recipe names."""
    body: nn.Module = model.base_model  # type: ignore[assignment]
    layers_name, layers = _layers(body)
    before_layers = True
    for name, parameter in body.named_parameters():
        in_layers = name.startswith(f"{layers_name}.")
        before_layers = before_layers and not in_layers
        if before_layers:
            parameter.requires_grad = tuning.train_embeddings
        elif in_layers:
            number = int(name[len(layers_name) + 1 :].split(".", 1)[0])
            parameter.requires_grad = number >= len(layers) - (tuning.train_last_layers or 0)
    if tuning.train_last_layers is not None and tuning.train_last_layers > len(layers):
        raise UserError(
            Problem(
                f"the model has {len(layers)} layers",
                path="tuning.train_last_layers",
                found=str(tuning.train_last_layers),
                valid=(f"0 to {len(layers)}",),
            )
        )
    names = [name for name, _ in model.named_parameters()]
    for number, pattern in enumerate(tuning.train or []):
        matches = [name for name in names if _search(pattern, name, number)]
        if not matches:
            raise UserError(
                Problem(
                    "no weight has a name that matches",
                    path=f"tuning.train.{number}",
                    found=pattern,
                    hint=f"names look like: {', '.join(names[:: max(1, len(names) // 6)])}",
                )
            )
        for name in matches:
            model.get_parameter(name).requires_grad = True


def _layers(body: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of layers of a transformer: its longest list of modules."""
    lists = [(name, module) for name, module in body.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UserError(
            Problem(f"{type(body).__name__} has no list of layers to freeze", path="tuning.method", found="freeze")
        )
    return max(lists, key=lambda item: len(item[1]))


def _search(pattern: str, name: str, number: int) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UserError(
            Problem(f"not a regular expression: {error}", path=f"tuning.train.{number}", found=pattern)
        ) from error
