"""Importing the package makes matrix products on CPUs reproducible."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = """
import sft_dist
import torch

torch.manual_seed(0)

def aligned(values, offset):  # to `offset` values after the start of a cache line
    memory = torch.empty(values.numel() + 32)
    start = -memory.data_ptr() // 4 % 16 + offset
    return memory[start : start + values.numel()].view(values.shape).copy_(values)

for rows, width, columns in [(1, 16, 16), (8, 8, 8), (1, 32, 2)]:
    x, weight = torch.randn(rows, width), torch.randn(columns, width)
    products = (aligned(x, i) @ aligned(weight, j).T for i in range(16) for j in range(16))
    print(len({product.numpy().tobytes() for product in products}))
"""


@pytest.mark.slow
def test_the_alignment_of_operands_changes_no_bit_of_a_product():
    """In a process of its own, because MKL reads the setting once."""
    env = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", RESULTS], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "1"]
