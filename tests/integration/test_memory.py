"""Data that are larger than the memory there is: the small sister of `make bench-memory` (5 GB within 1 GB)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_half_a_gigabyte_is_prepared_beside_a_quarter(tmp_path):
    """About 0.45 GB are the libraries' own; with the file in memory it would be more than the 0.7 GB that are allowed."""
    script = Path(__file__).parents[2] / "benchmarks/memory.py"
    command = [sys.executable, script, "--gigabytes", "0.5", "--limit", "0.7", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    assert '{"train": 102400, "validation": 12800, "test": 12800}' in done.stdout
