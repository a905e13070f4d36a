"""A file as its user wrote it, with the place of every key and value, and the schema that it must follow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sft_dist.recipe.errors import Mark
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.yaml_lines import KeyPath

# Names of our settings in other tools.
OTHER_NAMES = {
    "learning_rate": "train.lr",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "batch_size": "train.global_batch",
    "train_batch_size": "train.global_batch",
    "per_device_train_batch_size": "train.micro_batch",
    "per_device_eval_batch_size": "evaluate.micro_batch",
    "gradient_accumulation_steps": "train.global_batch (accumulation follows from it)",
    "lr_scheduler_type": "train.schedule",
    "scheduler": "train.schedule",
    "warmup_ratio": "train.warmup (such as 6%)",
    "warmup_steps": "train.warmup (such as 100 steps)",
    "max_grad_norm": "train.clip_norm",
    "save_steps": "train.save_every",
    "eval_steps": "train.eval_every",
    "bf16": "train.precision (bf16)",
    "weight_decay": "train.optimizer: {name: adamw, weight_decay: ...}",
    "label_smoothing": "train.loss: {name: cross-entropy, label_smoothing: ...}",
    "model_name_or_path": "model.path",
    "max_seq_length": "data.max_length",
    "dataset": "data.source",
    "lora_r": "tuning.r",
    "lora_alpha": "tuning.alpha",
    "lora_dropout": "tuning.dropout",
    "rank": "tuning.r",
    "walltime": "resources.time",
}


@dataclass(frozen=True)
class Schema:
    """What a file must follow. Cluster files have one, too (`launch/slurm/clusters.py`)."""

    root: type[BaseModel]
    noun: str  # "recipe", as in "at the top of a recipe"
    other_names: Mapping[str, str] = field(default_factory=dict)


RECIPE = Schema(Recipe, "recipe", OTHER_NAMES)


@dataclass(frozen=True)
class Base:
    """The parent of a recipe, merged with its own parents."""

    name: str  # as the recipe writes it
    data: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A file as written: base files merged, overrides applied, not validated."""

    data: dict[str, Any]
    file: Path
    keys: dict[KeyPath, Mark] = field(default_factory=dict)
    values: dict[KeyPath, Mark] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)  # numbers, booleans and null as they were written
    schema: Schema = RECIPE
    base: Base | None = None  # of a file that has one

    def mark(self, path: KeyPath) -> Mark | None:
        """Returns the place of a key path, or of the nearest section around it. List positions may be text: ("labels", "0")."""
        exact = tuple(int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else key for key in path)
        for length in range(len(path), -1, -1):
            for prefix in (path[:length], exact[:length]):
                if prefix in self.values:
                    return self.values[prefix]
        return None


def display_name(file: Path) -> str:
    """Returns the file's name as the user would type it."""
    try:
        relative = os.path.relpath(file)
    except (OSError, ValueError):
        return str(file)
    return str(file) if relative.startswith("..") else relative
