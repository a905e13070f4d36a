"""A disk that fills up while a run saves: the run says so, keeps what it had, and goes on from there once there is room."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from sft_dist.checkpoints import store as ckpt
from sft_dist.run.causes import classify_attempt
from sft_dist.run.folder import RunFolder
from tests.integration import harness
from tests.integration.test_resume import STEPS, write_recipe

pytestmark = pytest.mark.slow

REMOUNT, LAZILY = 32, 2


@pytest.fixture
def disk(tmp_path):
    """A function that gives the disk another size."""
    place = tmp_path / "disk"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(size: str, flags: int = REMOUNT) -> Path:
        if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", flags, f"size={size}".encode()):
            pytest.skip(f"no small file system can be mounted here: {os.strerror(ctypes.get_errno())}")
        return place

    mount("20m", 0)  # a checkpoint of the tiny model has 13 MB
    yield mount
    libc.umount2(str(place).encode(), LAZILY)


def test_a_full_disk_ends_the_run_with_its_cause_and_loses_nothing(disk, tiny_model, reviews, tmp_path):
    recipe = write_recipe(tmp_path / "cut.yaml", tiny_model, reviews, save_every="5 steps")
    runs = disk("20m") / "runs"
    folder = RunFolder(harness.run(recipe, runs, expect=1))
    verdict = classify_attempt(folder, folder.all_attempts()[0])
    assert verdict.cause == "disk full"
    assert "the checkpoint of step 10 could not be saved; earlier checkpoints are intact" in verdict.line
    assert os.listdir(folder.checkpoints) == ["step-00000005"]
    disk("200m")
    harness.run(recipe, runs)
    assert "resuming from step-00000005" in (folder.path / "attempts/002/rank-0.log").read_text()
    newest, damaged = ckpt.newest_good(folder)
    assert (newest.step, damaged) == (STEPS, [])
