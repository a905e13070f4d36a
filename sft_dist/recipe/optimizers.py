"""Optimizers by their name in transformers: what each needs, and why some cannot be used here. Torch-free.

`sgd` and `adafactor` of that table have classes of their own in the schema, beside `adamw` and `adam`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NamedOptimizerName = Literal[
    "adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop",
    "schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd", "stable_adamw",
    "adamw_8bit", "adamw_bnb_8bit", "ademamix", "ademamix_8bit", "lion_32bit", "lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_32bit", "rmsprop_bnb_8bit",
    "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "paged_lion_32bit", "paged_lion_8bit",
    "adamw_torch_4bit", "adamw_torch_8bit", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision",
    "grokadamw", "lomo", "adalomo", "apollo_adamw", "apollo_adamw_layerwise",
    "galore_adamw", "galore_adamw_8bit", "galore_adafactor",
    "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise",
]  # fmt: skip


@dataclass(frozen=True)
class Needs:
    module: str = ""  # to import
    package: str = ""  # to install
    gpu: bool = False
    refused: str = ""  # why it cannot be used here at all


_TORCH = Needs()
_BITSANDBYTES = Needs("bitsandbytes", "bitsandbytes")
_PAGED = Needs("bitsandbytes", "bitsandbytes", gpu=True)
_SCHEDULE_FREE = Needs("schedulefree", "schedulefree>=1.4")
_IN_BACKWARD = Needs(
    refused="it changes weights during the backward pass, so that no step can have one exact global batch, or a clipped gradient"
)
_PROJECTIONS = Needs(
    refused="its state has projections that are objects and not tensors, which a checkpoint does not hold"
)
_TORCHAO = Needs(
    refused="its state is in torchao's own kinds of tensors, which a checkpoint does not hold; use adamw_8bit instead"
)

NAMED_OPTIMIZERS: dict[NamedOptimizerName, Needs] = {
    "adamw_torch": _TORCH,
    "adamw_torch_fused": _TORCH,
    "adagrad": _TORCH,
    "rmsprop": _TORCH,
    "schedule_free_adamw": _SCHEDULE_FREE,
    "schedule_free_radam": _SCHEDULE_FREE,
    "schedule_free_sgd": _SCHEDULE_FREE,
    "stable_adamw": Needs("optimi", "torch-optimi"),
    "adamw_8bit": _BITSANDBYTES,
    "adamw_bnb_8bit": _BITSANDBYTES,
    "ademamix": _BITSANDBYTES,
    "ademamix_8bit": _BITSANDBYTES,
    "lion_32bit": _BITSANDBYTES,
    "lion_8bit": _BITSANDBYTES,
    "rmsprop_bnb": _BITSANDBYTES,
    "rmsprop_bnb_32bit": _BITSANDBYTES,
    "rmsprop_bnb_8bit": _BITSANDBYTES,
    "paged_adamw_32bit": _PAGED,
    "paged_adamw_8bit": _PAGED,
    "paged_ademamix_32bit": _PAGED,
    "paged_ademamix_8bit": _PAGED,
    "paged_lion_32bit": _PAGED,
    "paged_lion_8bit": _PAGED,
    "adamw_torch_4bit": _TORCHAO,
    "adamw_torch_8bit": _TORCHAO,
    "adamw_torch_xla": Needs(
        refused="it is for TPUs, and training here is for GPUs and CPUs; use adamw_torch_fused instead"
    ),
    "adamw_torch_npu_fused": Needs(
        refused="it is for Ascend NPUs, and training here is for GPUs and CPUs; use adamw_torch_fused instead"
    ),
    "adamw_anyprecision": Needs(refused="it is in torchdistx, which cannot be installed with this torch"),
    "grokadamw": Needs(
        refused="it keeps its state among the settings of its groups, where a checkpoint does not look, and clips gradients itself"
    ),
    "lomo": _IN_BACKWARD,
    "adalomo": _IN_BACKWARD,
    "apollo_adamw": _PROJECTIONS,
    "apollo_adamw_layerwise": _IN_BACKWARD,
    "galore_adamw": _PROJECTIONS,
    "galore_adamw_8bit": _PROJECTIONS,
    "galore_adafactor": _PROJECTIONS,
    "galore_adamw_layerwise": _IN_BACKWARD,
    "galore_adamw_8bit_layerwise": _IN_BACKWARD,
    "galore_adafactor_layerwise": _IN_BACKWARD,
}

# Each element of a weight is updated by itself, with state of the weight's own shape: what strategies need that give a
# process part of a weight. Schedule-free ones are not here: they swap the weights themselves for evaluation.
ELEMENTWISE: frozenset[str] = frozenset(
    {"adamw", "adam", "sgd", "adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop"}
)
