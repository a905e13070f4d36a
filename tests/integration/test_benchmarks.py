"""Benchmarks run: what they measure is for people, that they still fit the code is for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_checkpoints_are_measured(tiny_model):
    program = [sys.executable, str(ROOT / "benchmarks/checkpoint.py"), "--model", str(tiny_model), "--rounds", "1"]
    done = subprocess.run([*program, "--strategies", "single"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| single | ")
