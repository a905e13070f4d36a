"""How the processes of ZeRO are started."""

from __future__ import annotations

import pytest

from launch.strategies import STRATEGIES
from launch.strategies.base import Shape


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_started_like_ddp_and_never_by_accelerates_own_deepspeed(name: str) -> None:
    shape = Shape(nodes=1, processes_per_node=2, on_gpu=False)
    launch, ddp = STRATEGIES[name](shape), STRATEGIES["ddp"](shape)
    assert launch.flags == ddp.flags
    assert launch.env == {**ddp.env, "DS_ACCELERATOR": "cpu"}


def test_one_process_is_enough() -> None:
    alone = Shape(nodes=1, processes_per_node=1, on_gpu=True)
    assert STRATEGIES["zero3"](alone) == STRATEGIES["single"](alone)


def test_on_gpus_deepspeed_finds_them_itself() -> None:
    assert STRATEGIES["zero2"](Shape(nodes=2, processes_per_node=4, on_gpu=True)).env == {}
