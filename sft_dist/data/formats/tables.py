"""Tables (csv, tsv, json, parquet, arrow) and lines of text, by the readers of `datasets`."""

from __future__ import annotations

import csv
import glob
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset, load_dataset

from sft_dist.data.formats.cache import tables_folder
from sft_dist.data.formats.faults import (
    DELIMITERS,
    fault_in,
    is_plain,
    misquoted,
    no_rows,
    quoting_of,
    ragged,
    unreadable,
)

# data.format -> (reader of `datasets`, its options). Empty cells are missing; the text "NA" is a text.
_CSV = {"keep_default_na": False, "na_values": [""]}
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "csv": ("csv", _CSV),
    "tsv": ("csv", {**_CSV, "sep": "\t"}),
    "json": ("json", {}),
    "parquet": ("parquet", {}),
    "arrow": ("arrow", {}),
    "text": ("text", {}),
}


def read_table(name: str, files: list[str], streaming: bool, texts: Sequence[str] = ()) -> Dataset | IterableDataset:
    """Rows of all files, in order; of a csv the columns `texts` are not taken for numbers. Raises UserError with the place of
    the fault where it can be found, else whatever the reader raises. What is streamed from a URL is not gone through
    beforehand: its quotation marks always enclose fields."""
    reader, options = TABLES[name]
    if not any("://" in file for file in files) and any(is_plain(file, DELIMITERS.get(name, "")) for file in files):
        options = {**options, "quoting": csv.QUOTE_NONE}
    if texts:
        options = {**options, "converters": dict.fromkeys(texts, str)}
    exact = [file if "://" in file else glob.escape(file) for file in files]
    try:
        rows = load_dataset(
            reader, data_files=exact, split="train", cache_dir=tables_folder(), streaming=streaming, **options
        )
    except Exception as error:  # every reader has its own
        if "corresponds to no data" in str(error):
            raise no_rows(files) from error
        if fault := fault_in(name, files) or _other_columns(reader, options, exact):
            raise unreadable(fault) from error
        raise
    if not streaming and name in DELIMITERS:
        _refuse_ragged(rows, files, DELIMITERS[name])
        _refuse_swallowed(rows, files, DELIMITERS[name])
    return rows


def read_labelled(name: str, files: list[str], streaming: bool, label: str) -> Dataset | IterableDataset:
    """Like `read_table`; class names such as 007 keep their zeros, by which numbers would be another class. A stream takes
    its types from its first rows."""
    rows = read_table(name, files, streaming)
    if streaming or name not in DELIMITERS or label not in rows.column_names:
        return rows
    numbers = pa.types.is_integer(kind := rows.data.schema.field(label).type) or pa.types.is_floating(kind)
    if numbers and any(_has_leading_zeros(file, DELIMITERS[name], label) for file in files):
        return read_table(name, files, streaming, [label])
    return rows


def _has_leading_zeros(file: str, delimiter: str, column: str) -> bool:
    quoting = quoting_of(file, delimiter)
    parts = pd.read_csv(
        file, sep=delimiter, usecols=[column], dtype=str, keep_default_na=False, quoting=quoting, chunksize=100_000
    )
    return any(chunk[column].str.match(r"\s*[+-]?0[0-9]").any() for chunk in parts)


def _other_columns(reader: str, options: dict[str, Any], files: list[str]) -> str:
    """The first file whose columns are not those of the first one."""
    first: list[str] = []
    for file in files:
        rows = load_dataset(reader, data_files=[file], split="train", streaming=True, **options)
        columns = list(next(iter(rows), {}))
        if set(first or columns) != set(columns):
            return f"{file} has the columns {', '.join(columns)}, but {files[0]} has {', '.join(first)}"
        first = first or columns
    return ""


def _refuse_ragged(rows: Dataset, files: list[str], delimiter: str) -> None:
    """pandas fills up short rows and takes the first column of long ones for an index. Only where one of these may have
    happened is it worth going through the file again."""
    last = rows.data.column(rows.column_names[-1])
    if last.null_count or any(name.startswith("__index_level_") for name in rows.column_names):
        for file in files:
            if fault := ragged(file, delimiter):
                raise unreadable(fault)


def _refuse_swallowed(rows: Dataset, files: list[str], delimiter: str) -> None:
    """A text that begins with a quotation mark, and is none, swallows the rows up to the next mark. Nothing is swallowed
    where no field has more than one line."""
    if any(_has_lines(rows, name) for name in rows.column_names):
        for file in files:
            if fault := misquoted(file, delimiter):
                hint = (
                    'write "" for a mark that is part of a text and put the whole field in marks, as writers of csv do'
                )
                raise unreadable(fault, hint=hint)


def _has_lines(rows: Dataset, name: str) -> bool:
    column = rows.data.column(name)
    return rows.features[name].dtype in ("string", "large_string") and bool(
        pc.any(pc.match_substring_regex(column, "[\r\n]")).as_py()
    )
