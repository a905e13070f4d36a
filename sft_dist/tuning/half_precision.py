"""Frozen weights in 16 bits under the adapters of a run in mixed precision.

Autocast rounds the weight of a linear layer to 16 bits each time it is multiplied. Stored rounded, a frozen weight gives the
same bits, takes 2 bytes where the fp32 weight and its rounded copy take 6, and is not read and rounded in every forward pass.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def store_frozen_in_16_bits(model: nn.Module, precision: str) -> None:
    """Rounds, in place, the frozen weights of linear layers of a model with adapters. Embeddings (and heads tied to them),
    norms and biases stay fp32: autocast computes with them in fp32."""
    if precision in DTYPES and hasattr(model, "peft_config"):
        for module in rounded_layers(model):
            if not module.weight.requires_grad:
                module.weight.data = module.weight.data.to(DTYPES[precision])


def rounded_layers(model: nn.Module) -> list[nn.Linear]:
    """Returns the linear layers whose weight is used in their own product alone, which autocast computes in 16 bits. An
    embedding's weight may be the head's, and DoRA takes the norm of the weights in fp32."""
    adapter = getattr(model, "peft_config", {}).get("default")
    if getattr(adapter, "use_dora", False):
        return []
    owners = Counter(id(value) for module in model.modules() for value in module.parameters(recurse=False))
    return [module for module in model.modules() if type(module) is nn.Linear and owners[id(module.weight)] == 1]
