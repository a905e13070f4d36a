"""Mixed precision of a forward pass, the same in training, validation, evaluation and `predict`."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Returns the autocast of a precision; evaluation of an fp8 run is in bf16."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")
