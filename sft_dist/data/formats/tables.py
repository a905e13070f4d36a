"""Tables (csv, tsv, json, parquet, arrow) and lines of text.

What a text file says is kept: every cell of a csv is a text, whatever it looks like ("007", "1.10", "2001-01-01", "NA"),
and an empty one is missing. A task that needs a number converts the text. Parquet, Arrow and JSON say themselves
which values are numbers.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets, load_dataset

from sft_dist.data.formats.cache import tables_folder
from sft_dist.data.formats.dialect import DELIMITERS, Dialect, dialect_of, misquoted, opened
from sft_dist.data.formats.faults import different_columns, fault_in, no_rows, ragged, unreadable
from sft_dist.data.formats.json_rows import read_json
from sft_dist.data.formats.stored import stored_rows
from sft_dist.recipe.errors import UserError

_ROWS = 10_000  # of a csv read at a time
_READERS = {"parquet": "parquet", "arrow": "arrow", "text": "text"}  # data.format -> reader of `datasets`
TABLES = (*DELIMITERS, "json", *_READERS)


def read_table(name: str, files: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Rows of all files, in order. Raises UserError with the place of the fault where it can be found, else whatever the
    reader raises. What is streamed from a URL is not gone through beforehand: its quotation marks always enclose fields."""
    try:
        if name in DELIMITERS:
            return _read_delimited(name, files, streaming)
        if name == "json":
            return read_json(files, streaming)
        return _loaded(_READERS[name], files, streaming)
    except UserError:
        raise
    except Exception as error:  # every reader has its own
        if "corresponds to no data" in str(error):
            raise no_rows(files) from error
        if fault := fault_in(name, files):
            raise unreadable(fault) from error
        if name in _READERS:
            _refuse_other_columns(_READERS[name], files)
        raise


def _loaded(reader: str, files: list[str], streaming: bool, **options: Any) -> Dataset | IterableDataset:
    exact = [file if "://" in file else glob.escape(file) for file in files]
    return load_dataset(
        reader, data_files=exact, split="train", cache_dir=tables_folder(), streaming=streaming, **options
    )


# ── csv and tsv ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _read_delimited(name: str, files: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Rows of csv or tsv files; files of different dialects are read one after the other."""
    names = [_header(file, dialect_of(file, name)) for file in files]
    for file, columns in zip(files, names, strict=True):
        if set(columns) != set(names[0]):
            raise unreadable(different_columns(file, columns, files[0], names[0]))
    pieces = []
    for dialect, group in groupby(files, key=lambda file: dialect_of(file, name)):
        same = list(group)
        pieces.append(_stream(same, dialect) if streaming else _stored(same, dialect))
    return pieces[0] if len(pieces) == 1 else concatenate_datasets(pieces)


def _stored(files: list[str], dialect: Dialect) -> Dataset:
    rows = stored_rows("csv", files, lambda: (_features(files, dialect), _tables(files, dialect)), repr(dialect))
    if not len(rows):
        raise no_rows(files)
    _refuse_ragged(rows, files, dialect)
    _refuse_swallowed(rows, files, dialect)
    return rows


def _stream(files: list[str], dialect: Dialect) -> IterableDataset:
    return IterableDataset.from_generator(
        _rows, gen_kwargs={"files": files, "dialect": dialect}, features=_features(files[:1], dialect)
    )


def _rows(files: list[str], dialect: Dialect) -> Iterator[dict[str, Any]]:
    for table in _tables(files, dialect):
        yield from table.to_pylist()


def _features(files: list[str], dialect: Dialect) -> Features:
    return Features(dict.fromkeys(_header(files[0], dialect), Value("string")))


def _tables(files: list[str], dialect: Dialect) -> Iterator[pa.Table]:
    """Yields the rows with every cell as text, and empty cells as missing."""
    names: list[str] = []
    for file in files:
        with opened(file) as content:
            chunks = pd.read_csv(
                content, dtype=str, na_filter=False, encoding="utf-8-sig", chunksize=_ROWS, **dialect.for_pandas
            )
            for chunk in chunks:
                columns = {str(name).strip(): pa.array(chunk[name], pa.string()) for name in chunk.columns}
                missing = pa.scalar(None, pa.string())
                table = pa.table(
                    {name: pc.if_else(pc.equal(cells, ""), missing, cells) for name, cells in columns.items()}
                )
                names = names or table.column_names
                yield table.select(names)


def _raw_header(file: str, dialect: Dialect) -> list[str]:
    """Returns the names of the columns as the file has them. Raises UserError where the first row is longer than they are."""
    with opened(file) as content:
        beginning = pd.read_csv(
            content, nrows=1, dtype=str, na_filter=False, encoding="utf-8-sig", **dialect.for_pandas
        )
    if not isinstance(beginning.index, pd.RangeIndex) and (fault := ragged(file, dialect)):
        raise unreadable(fault)
    return [str(name) for name in beginning.columns]


def _header(file: str, dialect: Dialect) -> list[str]:
    """Returns the names of the columns without the blanks around them. Raises UserError where two have the same name."""
    with opened(file) as content:
        lines = (line.decode("utf-8-sig", errors="replace") for line in content)
        rows = (row for number, row in enumerate(dialect.reader(lines)) if row and number >= dialect.num_skipped)
        names = [name.strip() for name in next(rows, [])]
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise unreadable(f"{file}: several columns have the name {repeated[0]!r}")
    return [name.strip() for name in _raw_header(file, dialect)]


def _refuse_other_columns(reader: str, files: list[str]) -> None:
    """Raises UserError naming the first file whose columns are not those of the first one."""
    first: list[str] = []
    for file in files:
        columns = list(next(iter(_loaded(reader, [file], True)), {}))
        if set(first or columns) != set(columns):
            raise unreadable(different_columns(file, columns, files[0], first))
        first = first or columns


def _refuse_ragged(rows: Dataset, files: list[str], dialect: Dialect) -> None:
    """pandas fills up short rows. Only where this may have happened is it worth going through the file again."""
    if rows.data.column(rows.column_names[-1]).null_count:
        for file in files:
            if fault := ragged(file, dialect):
                raise unreadable(fault)


def _refuse_swallowed(rows: Dataset, files: list[str], dialect: Dialect) -> None:
    """A text that begins with a quotation mark, and is none, swallows the rows up to the next mark. Nothing is swallowed
    where no field has more than one line."""
    if any(_has_lines(rows, name) for name in rows.column_names):
        for file in files:
            if fault := misquoted(file, dialect):
                hint = (
                    'write "" for a mark that is part of a text and put the whole field in marks, as writers of csv do'
                )
                raise unreadable(fault, hint=hint)


def _has_lines(rows: Dataset, name: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(rows.data.column(name), "[\r\n]")).as_py())
