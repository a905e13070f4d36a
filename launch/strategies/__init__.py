"""How the processes of a run share the work. One pure function each; to add one, write it and name it in the table."""

from __future__ import annotations

from collections.abc import Callable

from launch.strategies.base import Launch, Shape
from launch.strategies.ddp import ddp
from launch.strategies.fsdp2 import fsdp2
from launch.strategies.single import single
from launch.strategies.zero import zero

STRATEGIES: dict[str, Callable[[Shape], Launch]] = {
    "single": single,
    "ddp": ddp,
    "zero1": zero,
    "zero2": zero,
    "zero3": zero,
    "fsdp2": fsdp2,
}
