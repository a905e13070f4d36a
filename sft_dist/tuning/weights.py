"""The `model/` folder of a checkpoint: which weights are in it, how it is written, and how it comes back.

A folder of transformers when the model itself is trained, a folder of PEFT when adapters are. What is written comes from
`weights`, never from the live model: by then the model may be sharded over ranks, and may be training on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ADAPTER_FILE = "adapter_model.safetensors"  # PEFT's name
_PROMPT = "prompt_encoder.default.embedding.weight"


def saved_names(model: nn.Module) -> set[str] | None:
    """Returns the names in `model.state_dict()` that `save_weights` needs; None: all. Not while the model trains: sharded
    models gather and release weights when they are asked for their state."""
    return set(_adapter_names(model, model.state_dict()).values()) if is_adapter(model) else None


def save_weights(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Writes `folder` as transformers or PEFT would. `weights`: on the CPU, under the names of `model.state_dict()`, at
    least those in `saved_names(model)`. The model may be training meanwhile."""
    if not is_adapter(model):
        _apart(model).save_pretrained(folder, state_dict=dict(weights))
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tensors = {key: weights[name].contiguous() for key, name in _adapter_names(model, weights).items()}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    live: Any = model
    config = copy.copy(live.peft_config["default"])
    config.inference_mode = True  # as PEFT has it in its files; on the model's own config it would change training
    config.base_model_name_or_path = config.base_model_name_or_path or live.get_base_model().name_or_path or None
    config.save_pretrained(folder)
    if (generation := getattr(live.get_base_model(), "generation_config", None)) is not None:
        generation.save_pretrained(folder)  # what ends an answer, which the base's own says otherwise


def load_weights(model: nn.Module, folder: Path) -> None:
    """Loads the weights of a checkpoint's `model/` into `model`, in place. Raises ValueError when they do not fit exactly."""
    weights = {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
    state = model.state_dict()
    names = _adapter_names(model, state) if is_adapter(model) else _model_names(model, state)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if missing := {key for key, name in names.items() if name not in tied} - set(weights):
        raise ValueError(f"{folder} lacks {len(missing)} weights, such as {min(missing)}")
    if strange := set(weights) - set(names):
        raise ValueError(f"{folder} has {len(strange)} weights that the model lacks, such as {min(strange)}")
    for name, value in weights.items():
        shape = state[names[name]].shape
        if value.shape != shape:
            raise ValueError(f"{folder}: {name} has shape {tuple(value.shape)}, the model {tuple(shape)}")
    model.load_state_dict({names[name]: value for name, value in weights.items()}, strict=False)


def is_adapter(model: nn.Module | None) -> bool:
    return hasattr(model, "peft_config")


def _apart(model: nn.Module) -> Any:
    """Returns the same modules under a config of their own: transformers writes into the config of the model it saves, and
    attention reads from it."""
    apart: Any = object.__new__(type(model))  # FSDP2's classes cannot be copied by `copy.copy`
    apart.__dict__ = {**model.__dict__, "config": copy.deepcopy(model.config)}
    return apart


def _model_names(model: Any, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns name in a file of transformers -> name in `model.state_dict()`, which is `state`. Transformers writes many
    models (ViT, DETR, SegFormer) under the names they had in its earlier versions, so that other tools know them."""
    from transformers.core_model_loading import revert_weight_conversion

    own = {id(value): name for name, value in state.items()}
    written = revert_weight_conversion(model, dict(state))
    if merged := sorted(name for name, value in written.items() if id(value) not in own):
        raise ValueError(f"{type(model).__name__} saves parameters under names it does not have, such as {merged[0]}")
    return {name: own[id(value)] for name, value in written.items()}


def _adapter_names(model: nn.Module, state: Iterable[str]) -> dict[str, str]:
    """Returns name in an adapter's file -> name in `model.state_dict()`, whose names (at least the adapter's) are `state`."""
    from peft import get_peft_model_state_dict

    names = list(state)
    if _PROMPT in names:  # PEFT would compute these from the live model
        saved = {"prompt_embeddings": _PROMPT}
        marker = ".modules_to_save.default."
        return saved | {name.replace(marker, "."): name for name in names if marker in name}
    # PEFT chooses and renames by name alone, so names may stand for the values. Embeddings are never resized here.
    return get_peft_model_state_dict(model, state_dict={name: name for name in names}, save_embedding_layers=False)
