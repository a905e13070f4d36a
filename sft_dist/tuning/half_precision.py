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
    norms and biases stay fp32: autocast computes with them in fp32. DoRA stays as it is: it takes the norm of the weights."""
    adapter = getattr(model, "peft_config", {}).get("default")
    if precision not in DTYPES or adapter is None or getattr(adapter, "use_dora", False):
        return
    owners = Counter(id(value) for module in model.modules() for value in module.parameters(recurse=False))
    for module in model.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad and owners[id(module.weight)] == 1:
            module.weight.data = module.weight.data.to(DTYPES[precision])
