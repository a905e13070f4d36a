"""One process, no communication."""

from __future__ import annotations

from launch.strategies.base import Launch, Shape, one_process
from sft_dist.recipe.errors import Problem, UserError


def single(shape: Shape) -> Launch:
    """Raises UserError when there is more than one process."""
    if shape.world_size > 1:
        raise UserError(
            Problem(
                f"strategy `single` runs one process, and {shape.world_size} are planned",
                path="train.strategy",
                value="single",
                valid=("auto", "ddp"),
                hint="or set resources.processes_per_node: 1",
            )
        )
    return one_process(shape)
