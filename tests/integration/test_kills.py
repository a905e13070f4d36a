"""200 kills at random moments while checkpoints are written: no run that cannot go on, and nothing lost without a word."""

from __future__ import annotations

import os
import random

import pytest

from tests.integration.killing import KEEP_LAST, kill_while_saving
from tests.sft_dist.engines.ranks import on_ranks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("world_size", "kills"), [(1, 140), (2, 60)])
def test_no_kill_while_saving_does_harm(tmp_path, world_size, kills):
    seed = int(os.environ.get("SFT_DIST_KILL_SEED") or random.randrange(10**6))
    print(f"\nSFT_DIST_KILL_SEED={seed}")
    # In a process of its own: one that forks must have no threads.
    (found,) = on_ranks(1, kill_while_saving, str(tmp_path / "run"), kills, world_size, seed, timeout_s=550)
    print(found)
    assert found["kills"] == kills
    assert found["unfinished"] > kills / 4  # else they came too early or too late to prove anything
    assert found["last_step"] > KEEP_LAST
