"""How the processes of a run share the work. One pure function each; to add one, write it and name it in the table."""

from __future__ import annotations

from collections.abc import Callable

from launch.strategies.base import Launch, Shape
from launch.strategies.ddp import ddp
from launch.strategies.single import single

STRATEGIES: dict[str, Callable[[Shape], Launch]] = {"single": single, "ddp": ddp}


def choose(asked: str, shape: Shape) -> tuple[str, str]:
    """The strategy's name, and why it is this one."""
    if asked != "auto":
        return asked, "the recipe says so"
    if shape.world_size == 1:
        return "single", "there is one process"
    return "ddp", f"there are {shape.world_size} processes"
