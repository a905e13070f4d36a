"""Every process holds the whole model and a share of each batch (PyTorch DistributedDataParallel)."""

from __future__ import annotations

from launch.strategies.base import Launch, Shape, several_processes
from sft_dist.recipe.errors import Problem, UserError


def ddp(shape: Shape) -> Launch:
    """Raises UserError when there is only one process: `accelerate launch --multi_gpu` refuses it."""
    if shape.world_size < 2:
        raise UserError(
            Problem(
                "strategy `ddp` shares work between processes, and one is planned",
                path="train.strategy",
                value="ddp",
                valid=("auto", "single"),
                hint="or set resources.processes_per_node: 2",
            )
        )
    return several_processes(shape)
