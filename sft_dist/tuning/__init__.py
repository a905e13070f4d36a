"""Which weights are trained: all, some, or adapters beside them."""

from __future__ import annotations

from torch import nn

from sft_dist.recipe.schema import BitfitTuning, FreezeTuning, FullTuning, Tuning
from sft_dist.tuning.adapters import add_adapter, require_mergeable
from sft_dist.tuning.freeze import freeze, train_biases, unfreeze_steps, zero_frozen_gradients
from sft_dist.tuning.layers import layer_depths
from sft_dist.tuning.weights import is_adapter, load_weights, save_weights, saved_names

__all__ = [
    "apply_tuning",
    "is_adapter",
    "layer_depths",
    "load_weights",
    "require_mergeable",
    "save_weights",
    "saved_names",
    "unfreeze_steps",
    "zero_frozen_gradients",
]


def apply_tuning(model: nn.Module, tuning: Tuning, peft_task: str | None) -> nn.Module:
    """Returns the model to train: the same object, or its PEFT wrapper. Raises UserError when the model cannot have it."""
    match tuning:
        case FullTuning():
            return model
        case FreezeTuning():
            freeze(model, tuning)
            return model
        case BitfitTuning():
            train_biases(model)
            return model
        case _:
            return add_adapter(model, tuning, peft_task)
