"""Estimates the GPU memory that a process needs with each strategy, from the recipe and the headers of the safetensors files.
Torch-free.

Counted, in bytes for each weight (fp32 under every precision): 4 for itself; if it is trained, 4 for its gradient and the
optimizer's state (Adam: 8), so 16 in all; DDP keeps 4 more for exchanging gradients; 16-bit autocast 2 for its copy. Not
counted, but reserved: activations and CUDA (`ACTIVATION_SHARE`), which depend on texts, kernels and micro-batch.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.references import model_source
from sft_dist.recipe.schema import BitfitTuning, FreezeTuning, FullTuning, LoraTuning, QloraTuning, Recipe, Sgd
from sft_dist.recipe.strategies import GRADIENTS, OPTIMIZER, PARAMETERS, STRATEGIES

ACTIVATION_SHARE = 0.25  # share of a GPU's memory that is left to activations and CUDA
LARGEST_HEADER = 100_000_000  # safetensors' own limit

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


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights."""

    all: int
    trained: int
    largest_layer: int
    outside: int  # in no layer: embeddings, head


def sizes_of(recipe: Recipe) -> Sizes | None:
    """Returns None when they are unknown: the model is on the hub, or its weights are not safetensors."""
    try:
        shapes = _shapes(model_source(recipe.model.path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError):
        return None  # loading the model reports what is wrong with the files
    if not shapes:
        return None
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
    amounts = {
        PARAMETERS: base * (sizes.all - sizes.trained) + 4 * sizes.trained,
        GRADIENTS: 4 * sizes.trained,
        OPTIMIZER: _state_bytes(recipe) * sizes.trained,
    }
    if row.buffered:
        amounts[row.buffered] += 4 * sizes.trained
    sharded = sum(amount for noun, amount in amounts.items() if noun in row.shards)
    total = sum(amounts.values()) - sharded + (0 if offloaded else sharded / processes)
    autocast = 2 * sizes.all if train.precision != "fp32" else 0
    if PARAMETERS not in row.shards:
        return int(total + autocast)
    # Gathered: one layer, the next one, a layer's gradients; the rest twice. Computing layers again frees autocast's copies.
    gathered = 12 * sizes.largest_layer + 8 * sizes.outside
    return int(total + gathered + (0 if train.gradient_checkpointing else autocast))


def _trained(recipe: Recipe, shapes: dict[str, tuple[int, ...]], layers: int) -> tuple[int, int]:
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


@lru_cache(maxsize=64)
def _shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """Returns every weight's shape, from the headers of a folder's safetensors files. Raises OSError and ValueError."""
    path = Path(folder)
    if not path.is_dir():
        return {}  # a hub id
    index = path / "model.safetensors.index.json"
    files = sorted(set(_read(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if Path(file).name != file:
            raise ValueError(f"{index}: {file} is not beside it")
        with (path / file).open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
            if length > LARGEST_HEADER:
                raise ValueError(f"{path / file}: not a safetensors file")
            header = json.loads(stream.read(length))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
