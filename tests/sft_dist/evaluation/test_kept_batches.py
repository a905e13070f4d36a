"""A batch is collated once, as long as there is room for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sft_dist.evaluation import kept_batches
from sft_dist.evaluation.kept_batches import KeptBatches


class Split:
    def __init__(self, split: str) -> None:
        self.split = split


@pytest.fixture
def collated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    calls: list[tuple[str, list[int]]] = []

    def collate(task: Any, examples: Any, indices: np.ndarray, processor: Any) -> Any:
        calls.append((examples.split, indices.tolist()))
        return {"ids": torch.zeros(len(indices), 10, dtype=torch.int64)}, [
            {"boxes": torch.zeros(5)}
        ]  # 80 bytes a row, and 20

    monkeypatch.setattr(kept_batches, "collate", collate)
    return calls


def test_a_batch_is_made_once_for_each_split(collated: list[Any]) -> None:
    kept, task = KeptBatches(), None
    for split in ("validation", "test", "validation"):
        kept(task, Split(split), np.array([1, 2]), None)  # type: ignore[arg-type]
        kept(task, Split(split), np.array([3]), None)  # type: ignore[arg-type]
    assert collated == [(split, indices) for split in ("validation", "test") for indices in ([1, 2], [3])]


def test_a_batch_for_which_there_is_no_room_is_made_each_time(collated: list[Any]) -> None:
    kept = KeptBatches(max_bytes=280)
    for _ in range(2):
        for rows in ([1, 2], [3, 4], [5]):  # 180, 180, 100 bytes
            kept(None, Split("validation"), np.array(rows), None)  # type: ignore[arg-type]
    assert [rows for _, rows in collated] == [[1, 2], [3, 4], [5], [3, 4]]
