"""Calls of a task that name the example when one fails, whatever the task and whatever it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_dist.data.rows import ROW, Examples
from sft_dist.recipe.errors import UserError
from sft_dist.run.failures import DataError, is_out_of_memory

if TYPE_CHECKING:
    from sft_dist.tasks.base import Rngs, Task

MOST_NAMED = 16


def encode(task: Task, rows: dict[str, list[Any]], processor: Any, split: str) -> dict[str, list[Any]]:
    """`task.encode` of stored rows. Raises DataError naming the row."""
    ids = np.array(rows[ROW])

    def encode_rows(indices: np.ndarray) -> dict[str, list[Any]]:
        if len(indices) == len(ids):
            return task.encode(rows, processor)
        return task.encode({name: [values[i] for i in indices] for name, values in rows.items()}, processor)

    return _named(encode_rows, np.arange(len(ids)), ids, split)


def collate(
    task: Task, examples: Examples, indices: np.ndarray, processor: Any, rngs: Rngs | None = None
) -> tuple[dict[str, Any], Any]:
    """`task.collate` of some examples. Raises DataError naming the row."""

    def collate_examples(positions: np.ndarray) -> tuple[dict[str, Any], Any]:  # an example may be there twice
        return task.collate(examples.at(indices[positions]), processor, rngs and [rngs[i] for i in positions.tolist()])

    return _named(collate_examples, np.arange(len(indices)), examples.ids[indices], examples.split)


def _named(call: Callable[[np.ndarray], Any], indices: np.ndarray, ids: np.ndarray, split: str) -> Any:
    try:
        return call(indices)
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        bad = ids[smallest_failing(call, indices)].tolist()
        names = f"row {bad[0]}" if len(bad) == 1 else f"rows {bad[:MOST_NAMED]}{' and more' * (len(bad) > MOST_NAMED)}"
        raise DataError(f"{names} of the {split} split: {type(error).__name__}: {error}") from error


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
