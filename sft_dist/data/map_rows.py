"""`datasets.map` of many rows: in batches, by several processes where that is worth their start, into files that are removed
once the result is saved elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features

from sft_dist.data.cached_folder import cache_key

BATCH = 1000  # rows handled at a time
MIN_ROWS_FOR_PROCESSES = 50_000  # rows from which on several processes are worth their start
_SUFFIX = ".mapped"


def map_rows(
    table: Dataset,
    function: Callable[[dict[str, list[Any]]], dict[str, list[Any]]],
    features: Features,
    to: Path,
    name: str,
) -> Dataset:
    """Returns what `function` makes of the columns of each batch, in a file `name` under `to`."""
    return table.map(
        function,
        batched=True,
        batch_size=BATCH,
        remove_columns=table.column_names,
        features=features,
        num_proc=_processes(len(table)),
        load_from_cache_file=False,
        cache_file_name=str(to / f"{name}{_SUFFIX}"),
        new_fingerprint=cache_key(str(to), name),
    )


def remove_map_files(folder: Path) -> None:
    for file in folder.glob(f"*{_SUFFIX}*"):
        file.unlink()


def _processes(num_rows: int) -> int | None:
    return None if num_rows < MIN_ROWS_FOR_PROCESSES else max(1, len(os.sched_getaffinity(0)))
