"""Adapters beside the frozen weights, by PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import LoraTuning


def add_lora(model: nn.Module, tuning: LoraTuning, peft_task: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type=peft_task,
        r=tuning.r,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=tuning.target_modules,
        use_rslora=tuning.rslora,
        use_dora=tuning.dora,
        modules_to_save=list(tuning.modules_to_save) or None,
    )
    _check_layer_names(model, tuning)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(Problem(str(error), path="tuning", found=str(tuning.target_modules))) from error


def _check_layer_names(model: nn.Module, tuning: LoraTuning) -> None:
    """PEFT is content when one of several names is found, and ignores a layer to save that is nowhere."""
    from transformers.pytorch_utils import Conv1D

    layers = {name: module for name, module in model.named_modules() if name}
    linear = {name.rsplit(".", 1)[-1] for name, module in layers.items() if isinstance(module, (nn.Linear, Conv1D))}
    targets = tuning.target_modules
    if isinstance(targets, str):
        known = targets == "all-linear" or any(_matches(targets, name) for name in layers)
        lost = [] if known else [("target_modules", targets)]
    else:
        lost = [("target_modules", one) for one in targets if not _is_there(one, layers)]
    lost += [("modules_to_save", one) for one in tuning.modules_to_save if not _is_there(one, layers)]
    if lost:
        last_parts = {name.rsplit(".", 1)[-1] for name in layers}
        valid = {"target_modules": ("all-linear", *sorted(linear)), "modules_to_save": tuple(sorted(last_parts))}
        raise UserError(
            [
                Problem("no layer of the model has such a name", path=f"tuning.{key}", found=name, valid=valid[key])
                for key, name in lost
            ]
        )


def _is_there(name: str, layers: Iterable[str]) -> bool:
    return any(layer == name or layer.endswith(f".{name}") for layer in layers)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UserError(
            Problem(f"not a regular expression: {error}", path="tuning.target_modules", found=pattern)
        ) from error
