"""Which weights are trained: all, some, or adapters beside them."""

from __future__ import annotations

import re
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
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        if "not found in the base model" in str(error) or "No modules were targeted" in str(error):
            linear = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
            raise UserError(
                Problem(
                    "no layer of the model has such a name",
                    path="tuning.target_modules",
                    found=str(tuning.target_modules),
                    valid=("all-linear", *linear),
                )
            ) from error
        raise


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
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    weights = {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
    if isinstance(model, PeftModel):
        expected = set(get_peft_model_state_dict(model))
        set_peft_model_state_dict(model, dict(weights))
    else:
        expected = set(model.state_dict()) - set(getattr(model, "all_tied_weights_keys", None) or ())
        model.load_state_dict(weights, strict=False)
    if missing := expected - set(weights):
        raise ValueError(f"{folder} lacks {len(missing)} weights, such as {min(missing)}")
    if strange := set(weights) - expected - set(model.state_dict()):
        raise ValueError(f"{folder} has {len(strange)} weights that the model lacks, such as {min(strange)}")
