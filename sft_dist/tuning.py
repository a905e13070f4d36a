"""Which weights are trained: all, some, or adapters beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import FreezeTuning, FullTuning, LoraTuning, Tuning


def apply_tuning(model: nn.Module, tuning: Tuning, peft_task: str) -> nn.Module:
    """Returns the model to train: the same object, or its PEFT wrapper. Raises UserError when nothing would be trained."""
    match tuning:
        case FullTuning():
            return model
        case FreezeTuning():
            freeze(model, tuning)
            return model
        case LoraTuning():
            return add_lora(model, tuning, peft_task)


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


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put the weights of a checkpoint's `model/` into `model`, in place. Raises ValueError when they do not fit exactly."""
    weights = {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
    is_adapter = hasattr(model, "peft_config")
    if is_adapter:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        there, tied = get_peft_model_state_dict(model), set()
    else:
        there, tied = model.state_dict(), set(getattr(model, "all_tied_weights_keys", None) or ())
    if missing := set(there) - tied - set(weights):
        raise ValueError(f"{folder} lacks {len(missing)} weights, such as {min(missing)}")
    if strange := set(weights) - set(there):
        raise ValueError(f"{folder} has {len(strange)} weights that the model lacks, such as {min(strange)}")
    for name, value in weights.items():
        if value.shape != there[name].shape:
            raise ValueError(f"{folder}: {name} has shape {tuple(value.shape)}, the model {tuple(there[name].shape)}")
    if is_adapter:
        set_peft_model_state_dict(model, dict(weights))
    else:
        model.load_state_dict(weights, strict=False)
