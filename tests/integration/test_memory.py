"""Data that are larger than memory: the small sister of `make bench-memory` (5 GB within 1 GB)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_preparing_takes_little_more_memory_than_the_libraries(tmp_path):
    """About 0.45 GB are the libraries' own; with the half gigabyte of rows in memory it would be 0.95. (The benchmark's limit
    counts what is reserved, such as threads' stacks, and so depends on the number of cores.)"""
    script = Path(__file__).parents[2] / "benchmarks/memory.py"
    command = [sys.executable, script, "--gigabytes", "0.5", "--limit", "8", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    assert '{"train": 102400, "validation": 12800, "test": 12800}' in done.stdout
    found = re.search(r"([\d.]+) GB of memory in all its processes", done.stdout)
    assert found, done.stdout
    assert 0.2 < float(found[1]) < 0.75, done.stdout
