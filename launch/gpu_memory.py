"""Estimates the GPU memory that a process needs with each strategy, from the recipe and the headers of the safetensors files.
Torch-free. The headers of a hub model are read by a subprocess (`launch.hub_weights`).

Counted, in bytes for each weight: 4 for itself; if it is trained, 4 for its gradient and the optimizer's state (Adam: 8), so 16
in all; DDP keeps 4 more for exchanging gradients; 16-bit autocast 2 for its copy. Frozen weights of layers under adapters are
2 in all where autocast is 16-bit, but for ZeRO (`sft_dist.tuning.half_precision`). Not counted, but reserved:
activations and CUDA (`ACTIVATION_SHARE`), which depend on texts, kernels and micro-batch.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import index as index_of
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.model_damage import read_header
from sft_dist.recipe.references import classify, model_source
from sft_dist.recipe.schema import BitfitTuning, FreezeTuning, FullTuning, LoraTuning, QloraTuning, Recipe, Sgd
from sft_dist.recipe.strategies import GRADIENTS, OPTIMIZER, PARAMETERS, STRATEGIES, Strategy
from sft_dist.recipe.tunings import has_adapter
from sft_dist.run.subprocesses import environment, module_command

ACTIVATION_SHARE = 0.25  # share of a GPU's memory that is left to activations and CUDA
HUB_TIMEOUT_S = 5.0  # a plan waits no longer for the hub

# Bytes of optimizer state a trained weight has; other optimizers are assumed to keep Adam's two moments.
STATE_BYTES = {
    "adafactor": 0,
    "adagrad": 4,
    "rmsprop": 4,
    "lion_32bit": 4,
    "lion_8bit": 1,
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
}
_ADAM = 8
_QLORA_BASE = 0.55  # nf4 with its scales, bytes a weight

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_EMBEDDING = re.compile(r"embed|\bwte\b|\bwpe\b", re.IGNORECASE)


Shapes = dict[str, tuple[int, ...]]  # of weights, by name


class SizesUnknown(Exception):
    """The model's weights cannot be counted; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights."""

    all: int
    trained: int
    largest_layer: int
    outside: int  # in no layer: embeddings, head


def sizes_of(recipe: Recipe) -> Sizes:
    """Raises SizesUnknown: the model is not safetensors, or it is on the hub and cannot be reached."""
    shapes = _shapes(recipe.model.path, recipe.model.revision)
    layers: dict[int, int] = {}
    for name, shape in shapes.items():
        if (layer := _layer_of(name)) is not None:
            layers[layer] = layers.get(layer, 0) + prod(shape)
    total = sum(prod(shape) for shape in shapes.values())
    trained, added = _trained(recipe, shapes, len(layers))
    return Sizes(total + added, trained, max(layers.values(), default=0), total - sum(layers.values()))


def bytes_needed(strategy: str, offloaded: bool, sizes: Sizes, recipe: Recipe, processes: int) -> int:
    """Returns the bytes on each GPU, without activations. `offloaded`: all that is sharded is in the machine's main memory."""
    row, train = STRATEGIES[strategy], recipe.train
    base = _QLORA_BASE if isinstance(recipe.tuning, QloraTuning) else 4
    halved = sizes.all - sizes.trained - sizes.outside if _stores_16_bits(row, recipe) else 0
    amounts = {
        PARAMETERS: base * (sizes.all - sizes.trained - halved) + 2 * halved + 4 * sizes.trained,
        GRADIENTS: 4 * sizes.trained,
        OPTIMIZER: _state_bytes(recipe) * sizes.trained,
    }
    if row.buffered:
        amounts[row.buffered] += 4 * sizes.trained
    sharded = sum(amount for noun, amount in amounts.items() if noun in row.shards)
    total = sum(amounts.values()) - sharded + (0 if offloaded else sharded / processes)
    if PARAMETERS in row.shards:
        return int(total + _gathered(row, sizes, recipe))
    return int(total + (2 * (sizes.all - halved) if train.precision != "fp32" else 0))


def _gathered(row: Strategy, sizes: Sizes, recipe: Recipe) -> int:
    """Returns the bytes of one layer, the next one and a layer's gradients; the rest twice; and of autocast's copies, which
    computing layers again frees. A layer that is gathered in 16 bits needs no copy; its gradients are summed in fp32."""
    halved = row.has_16_bit_layers and recipe.train.precision == "bf16" and not _has_dora(recipe)
    copied = 0 if recipe.train.precision == "fp32" else sizes.outside if halved else sizes.all
    layers = (2 + 2 + 2 + 4 if halved else 12) * sizes.largest_layer
    return layers + 8 * sizes.outside + (0 if recipe.train.gradient_checkpointing else 2 * copied)


def _has_dora(recipe: Recipe) -> bool:
    return bool(getattr(recipe.tuning, "dora", False))


def _stores_16_bits(row: Strategy, recipe: Recipe) -> bool:
    """Whether frozen weights of layers are stored in 16 bits."""
    tuning = recipe.tuning
    is_plain = has_adapter(tuning) and not isinstance(tuning, QloraTuning) and not _has_dora(recipe)
    return is_plain and row.has_16_bit_layers and recipe.train.precision in ("bf16", "fp16")


def _trained(recipe: Recipe, shapes: Shapes, layers: int) -> tuple[int, int]:
    """Returns (weights that are trained, how many of them the tuning adds). New heads are not counted."""
    tuning = recipe.tuning
    match tuning:
        case FullTuning():
            return sum(map(prod, shapes.values())), 0
        case LoraTuning() | QloraTuning():
            named = tuning.target_modules if isinstance(tuning.target_modules, list) else None
            added = sum(
                tuning.r * sum(shape)
                for name, shape in shapes.items()
                if len(shape) == 2 and _layer_of(name) is not None and (named is None or name.split(".")[-2] in named)
            )
            return added, added
        case BitfitTuning():
            return sum(prod(shape) for name, shape in shapes.items() if name.endswith(".bias")), 0
        case FreezeTuning():
            first, last = tuning.train_first_layers or 0, layers - (tuning.train_last_layers or 0)
            return sum(prod(shape) for name, shape in shapes.items() if _is_trained(name, tuning, first, last)), 0
        case _:
            return 0, 0  # prefixes, prompts and scales are small


def _is_trained(name: str, tuning: FreezeTuning, first: int, last: int) -> bool:
    if any(re.search(pattern, name) for pattern in tuning.train or ()):
        return True
    layer = _layer_of(name)
    if layer is None:
        return tuning.train_embeddings or not _EMBEDDING.search(name)
    return layer < first or layer >= last


def _state_bytes(recipe: Recipe) -> int:
    optimizer = recipe.train.optimizer
    if isinstance(optimizer, Sgd):
        return 4 if optimizer.momentum else 0
    return STATE_BYTES.get(optimizer.name, _ADAM)


def _layer_of(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def _shapes(model: str, revision: str | None) -> Shapes:
    """Returns every weight's shape. Raises SizesUnknown."""
    try:
        source = model_source(model)
        is_hub_id = classify(model, Path.cwd()).kind == "hub"
        shapes = _hub_shapes(source, revision) if is_hub_id else _folder_shapes(source)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, UserError):
        raise SizesUnknown(
            "its weights are not valid safetensors files"
        ) from None  # loading the model says what is wrong
    if isinstance(shapes, str):
        raise SizesUnknown(shapes)
    return shapes


@lru_cache(maxsize=64)
def _hub_shapes(repo: str, revision: str | None) -> Shapes | str:
    """Returns the shapes, or why they are unknown."""
    command = module_command("launch.hub_weights", [repo, revision or ""])
    quiet = {**environment(), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=HUB_TIMEOUT_S, check=True)
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"the hub did not answer within {HUB_TIMEOUT_S:.0f} s"
    except (subprocess.CalledProcessError, LookupError, ValueError):
        return "reading the hub failed"
    return answer.get("unknown") or {name: tuple(shape) for name, shape in answer["shapes"].items()}


@lru_cache(maxsize=64)
def _folder_shapes(folder: str) -> Shapes:
    return shapes_of_folder(Path(folder))


def shapes_of_folder(path: Path) -> Shapes:
    """Returns every weight's shape, from the headers of a folder's safetensors files. Raises OSError, ValueError and TypeError."""
    index = path / "model.safetensors.index.json"
    files = sorted(set(_read(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    shapes: Shapes = {}
    for file in files:
        if Path(file).name != file:
            raise ValueError(f"{index}: {file} is missing beside it")
        shapes |= {name: tuple(map(index_of, entry["shape"])) for name, entry in read_header(path / file).items()}
    return shapes


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
