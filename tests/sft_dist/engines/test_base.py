"""What all strategies start with: a device as planned, and a group that waits as long as a rank may work alone."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sft_dist.engines import start_engine
from sft_dist.engines.base import COLLECTIVE_TIMEOUT, Setup
from sft_dist.recipe.files import write_json
from sft_dist.run.causes import cause_of
from sft_dist.run.folder import RunFolder
from tests.sft_dist.engines.curves import OPTIMIZERS, build, engine_of
from tests.sft_dist.engines.ranks import on_ranks


def timeouts(strategy: str) -> set[Any]:
    """Of every group there is once the model is shared out."""
    engine = engine_of(strategy)(Setup("fp32", "", {"name": strategy}))
    engine.prepare(build("bert"), OPTIMIZERS["adamw"])
    groups = list(dist.distributed_c10d._world.pg_map)
    return {group._get_backend(torch.device("cpu")).options._timeout for group in groups}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "ranks"), [("ddp", 2), ("zero2", 2), ("zero3", 1), ("fsdp2", 2), ("fsdp2", 1)])
def test_no_collective_gives_up_before_the_heartbeats(strategy: str, ranks: int) -> None:
    assert on_ranks(ranks, timeouts, strategy) == [{COLLECTIVE_TIMEOUT}] * ranks


def test_a_plan_for_gpus_does_not_train_on_a_cpu_and_the_host_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    folder = RunFolder(tmp_path)
    write_json(folder.plan_file, {"device": "gpu", "strategy": {"name": "ddp"}})
    recipe: Any = None  # nothing of it is looked at before
    with pytest.raises(RuntimeError, match=f"finds none on {socket.gethostname()}") as found:
        start_engine(recipe, folder)
    assert cause_of({"type": "RuntimeError", "message": str(found.value)}) == "gpu"
