"""The one reduction of a step: the global loss, and whether any rank received a request to stop."""

from __future__ import annotations

import torch
from torch import Tensor

from sft_dist.training.state import Training


def reduce_loss_and_stop(t: Training, local_loss: Tensor) -> tuple[float, str]:
    """Returns the global loss, and why to stop; empty when no rank was asked to."""
    if not t.stop_requested and t.accelerator.is_main_process and t.folder.stop_file.exists():
        t.stop_requested.append("asked to stop")
    values = torch.stack([local_loss, torch.full_like(local_loss, float(bool(t.stop_requested)))])
    loss, stops = t.accelerator.reduce(values, "sum").tolist()
    reason = t.stop_requested[0] if t.stop_requested else "another rank was asked to stop"
    return loss, reason if stops else ""
