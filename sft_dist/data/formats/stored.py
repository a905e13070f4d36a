"""Rows of files that this program reads itself, stored once as an Arrow file for each state the files are in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter

from sft_dist.data.cached_folder import cached_folder
from sft_dist.data.formats.cache import tables_folder

_LAYOUT = 2  # raised when the same file is to be stored in another way


def stored_rows(
    name: str, files: Sequence[str], read: Callable[[], tuple[Features, Iterator[pa.Table]]], *options: str
) -> Dataset:
    """Returns the rows that `read` yields, memory-mapped. `options` is what else than the files decides about them."""
    states = [(os.path.abspath(file), (state := os.stat(file)).st_size, state.st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([_LAYOUT, states, options]).encode()).hexdigest()[:20]

    def build(folder: Path) -> None:
        features, tables = read()
        with ArrowWriter(features=features, path=str(folder / "rows.arrow")) as writer:
            for table in tables:
                writer.write_table(table)
            writer.finalize()

    with cached_folder(Path(tables_folder()) / name / key, build) as folder:
        return Dataset.from_file(str(folder / "rows.arrow"))
