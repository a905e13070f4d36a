"""Benchmarks run: what they measure is for people, that they still fit the code is for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_checkpoints_are_measured(tiny_model):
    program = [sys.executable, str(ROOT / "benchmarks/checkpoint.py"), "--model", str(tiny_model), "--rounds", "1"]
    done = subprocess.run([*program, "--strategies", "single"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| single | ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_measures_a_gpu_says_that_there_is_none():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/gpu.py")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "there is no GPU here that torch can use: this benchmark measures one\n"
