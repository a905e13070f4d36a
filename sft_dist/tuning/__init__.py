"""Which weights are trained: all, some, or adapters beside them."""

from __future__ import annotations

from torch import nn

from sft_dist.recipe.schema import FreezeTuning, FullTuning, LoraTuning, Tuning
from sft_dist.tuning.adapters import add_lora
from sft_dist.tuning.freeze import freeze
from sft_dist.tuning.weights import load_weights, save_weights, saved_names

__all__ = ["apply_tuning", "load_weights", "save_weights", "saved_names"]


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
