"""What all strategies start with: a process group that waits as long as a rank may rightly work alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from sft_dist.engines.base import COLLECTIVE_TIMEOUT, Setup
from tests.sft_dist.engines.curves import OPTIMIZERS, build, engine_of
from tests.sft_dist.engines.ranks import on_ranks

pytestmark = pytest.mark.slow


def timeouts(strategy: str) -> set[Any]:
    """Of every group there is once the model is shared out."""
    engine = engine_of(strategy)(Setup("fp32", (), "", {"name": strategy}))
    engine.prepare(build("bert"), OPTIMIZERS["adamw"])
    groups = list(dist.distributed_c10d._world.pg_map)
    return {group._get_backend(torch.device("cpu")).options._timeout for group in groups}


@pytest.mark.parametrize(("strategy", "ranks"), [("ddp", 2), ("zero2", 2), ("zero3", 1), ("fsdp2", 2), ("fsdp2", 1)])
def test_no_collective_gives_up_before_the_heartbeats(strategy: str, ranks: int) -> None:
    assert on_ranks(ranks, timeouts, strategy) == [{COLLECTIVE_TIMEOUT}] * ranks
