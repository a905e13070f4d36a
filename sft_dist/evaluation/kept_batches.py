"""Collated batches of a split, kept in memory from one checkpoint to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sft_dist.data.encode import collate
from sft_dist.data.rows import Examples
from sft_dist.tasks.base import Task

MAX_BYTES = 2**29  # of tensors


class KeptBatches:
    """`collate` without random changes: a batch that was made before is not made again, as long as all of them fit into
    `max_bytes`. Further batches are made each time. Nobody may change the tensors."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._free_bytes = max_bytes
        self._batches: dict[tuple[str, bytes], tuple[dict[str, Any], Any]] = {}

    def __call__(
        self, task: Task, examples: Examples, indices: np.ndarray, processor: Any
    ) -> tuple[dict[str, Any], Any]:
        key = examples.split, indices.tobytes()
        if key in self._batches:
            return self._batches[key]
        batch = collate(task, examples, indices, processor)
        if (size := _num_bytes(batch)) <= self._free_bytes:
            self._free_bytes -= size
            self._batches[key] = batch
        return batch


def _num_bytes(value: Any) -> int:
    if torch.is_tensor(value) or isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        value = list(value.values())
    return sum(map(_num_bytes, value)) if isinstance(value, (list, tuple)) else 0
