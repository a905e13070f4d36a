"""Calls of a task that name the example when one fails, whatever the task and whatever it raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sft_dist.failures import DataError, is_out_of_memory
from sft_dist.recipe.errors import UserError
from sft_dist.tasks.base import Examples, Task

if TYPE_CHECKING:
    from sft_dist.data.prepare import Rows

MOST_NAMED = 16


def encode(task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, split: str) -> Examples:
    """`task.encode`. Raises DataError naming the row."""
    found = _named(lambda some: task.encode(rows.select(some), tokenizer), np.arange(len(rows)), rows.ids, split)
    return replace(found, split=split)


def collate(
    task: Task, examples: Examples, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Tensor], Tensor]:
    """`task.collate`. Raises DataError naming the row."""
    return _named(lambda some: task.collate(examples, some, tokenizer), indices, examples.ids, examples.split)


def _named(call: Callable[[np.ndarray], Any], indices: np.ndarray, ids: np.ndarray, split: str) -> Any:
    try:
        return call(indices)
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        bad = ids[smallest_failing(call, indices)].tolist()
        which = f"row {bad[0]}" if len(bad) == 1 else f"rows {bad[:MOST_NAMED]}{' and more' * (len(bad) > MOST_NAMED)}"
        raise DataError(f"{which} of the {split} split: {type(error).__name__}: {error}") from error


def smallest_failing(call: Callable[[np.ndarray], Any], indices: np.ndarray) -> np.ndarray:
    """Halves, as long as one half fails by itself; so one of a million is found with about forty calls."""
    while len(indices) > 1:
        middle = len(indices) // 2
        failing = [half for half in (indices[:middle], indices[middle:]) if _fails(call, half)]
        if not failing:
            break
        indices = failing[0]
    return indices


def _fails(call: Callable[[np.ndarray], Any], indices: np.ndarray) -> bool:
    try:
        call(indices)
    except Exception:
        return True
    return False
