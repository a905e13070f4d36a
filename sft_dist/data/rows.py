"""Rows and encoded examples of a split, memory-mapped: what they hold is read from disk when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from sft_dist.recipe.errors import UserError

NUM_COMPARED = 1000  # rows of a table whose content is in its digest
BATCH = 10_000  # rows of a column that are gathered at a time
ROW = "row"  # column: the row's number in its source
GROUP = "group"  # column of rows: the name of the row's group, where data.split.group names a column


class NoRowsLeft(UserError):
    """Every row was dropped."""


@dataclass(frozen=True)
class _Table:
    table: Dataset

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> list[Any]:
        return [value for batch in self.table.select_columns([name]).iter(BATCH) for value in batch[name]]

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers, (rows,)."""
        return self._arrow(name).to_numpy()

    def codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        """A column of few different texts -> (rows,) their numbers, -1 where there is none, and the texts."""
        coded = pa.concat_arrays(self._arrow(name).chunks).dictionary_encode()
        return coded.indices.fill_null(-1).to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()

    def _arrow(self, name: str) -> pa.ChunkedArray:
        """A batch at a time: of rows that were selected, each has a table of its own until they are put together."""
        column = self.table.select_columns([name]).with_format("arrow")
        chunks = [batch.column(name).combine_chunks() for batch in column.iter(BATCH)]
        return pa.chunked_array(chunks or [[]], self.table.features.arrow_schema.field(name).type)

    @cached_property
    def ids(self) -> np.ndarray:
        """(rows,) row numbers in the source."""
        return self.numbers(ROW)

    def at(self, indices: Any) -> list[dict[str, Any]]:
        columns = self.table[np.asarray(indices).tolist()]
        names = list(columns)
        return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@dataclass(frozen=True)
class Rows(_Table):
    """Cleaned rows of one split: a column for each role that the task stores, and ROW."""


@dataclass(frozen=True)
class Examples(_Table):
    """One encoded split: the columns that the task makes, and ROW."""

    split: str = ""

    @cached_property
    def lengths(self) -> np.ndarray:
        """(examples,) tokens, or whatever else measures an example's work."""
        return self.numbers("length")

    @property
    def num_truncated(self) -> int:
        return int(self.numbers("truncated").sum()) if "truncated" in self.table.column_names else 0


def table_digest(table: Rows | Examples) -> str:
    """Hashes all row numbers, and some rows in full."""
    sample = np.linspace(0, len(table) - 1, min(NUM_COMPARED, len(table)), dtype=int)
    return digest([table.ids.tobytes(), *(repr(row).encode(errors="surrogatepass") for row in table.at(sample))])


def digest(pieces: Iterable[bytes]) -> str:
    result = hashlib.sha256()
    for piece in pieces:
        result.update(hashlib.sha256(piece).digest())
    return result.hexdigest()[:12]
