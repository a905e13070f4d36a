"""Tables (csv, tsv, json, parquet, arrow) and lines of text.

What a text file says is kept: every cell of a csv is a text, whatever it looks like ("007", "1.10", "2001-01-01", "NA"),
and an empty one, or `\\N` of a database, is missing. `="007"`, as Excel writes a text, is that text. A task that needs a number converts the text. Parquet, Arrow
and JSON say themselves which values are numbers.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from functools import reduce
from itertools import groupby, islice
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets, load_dataset

from sft_dist.data.formats.cache import tables_folder
from sft_dist.data.formats.dialect import (
    DELIMITERS,
    Dialect,
    dialect_of,
    fields_of_any_size,
    has_null_marks,
    misquoted,
    opened,
)
from sft_dist.data.formats.faults import (
    different_columns,
    fault_in,
    no_rows,
    other_format,
    ragged,
    repeated_header,
    require_few_columns,
    unreadable,
)
from sft_dist.data.formats.json_rows import read_json
from sft_dist.data.formats.stored import stored_rows
from sft_dist.recipe.errors import UserError

_ROWS = 10_000  # of a csv read at a time
_READERS = {"parquet": "parquet", "arrow": "arrow", "text": "text"}  # data.format -> reader of `datasets`
_MISSING = ("", r"\N")  # `\N`: of MySQL, PostgreSQL and Hive
TABLES = (*DELIMITERS, "json", *_READERS)


def read_table(name: str, files: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Rows of all files, in order. Raises UserError with the place of the fault where it can be found, else whatever the
    reader raises. What is streamed from a URL is not gone through beforehand: its quotation marks always enclose fields."""
    try:
        if other := next(filter(None, (other_format(name, file) for file in files)), ""):
            raise unreadable(other, hint="give the file the suffix of what it holds")
        if name in DELIMITERS:
            return _read_delimited(name, files, streaming)
        if name == "json":
            return read_json(files, streaming)
        for file in files:
            require_few_columns(file, _num_columns(name, file))
        return _loaded(_READERS[name], files, streaming)
    except UserError:
        raise
    except Exception as error:  # every reader has its own
        reasons = f"{error} {error.__cause__}"
        if "corresponds to no data" in reasons or "BatchSize must be greater than 0" in reasons:
            raise no_rows(files) from error
        if fault := fault_in(name, files):
            raise unreadable(fault) from error
        if name in _READERS:
            _refuse_other_columns(_READERS[name], files)
        raise


def _num_columns(name: str, file: str) -> int:
    """Returns the number of columns that the header of a local Parquet or Arrow file names; 0 where it cannot be read."""
    if "://" in file or name not in ("parquet", "arrow"):
        return 0
    try:
        if name == "parquet":
            return int(pq.read_metadata(file).num_columns)
        with pa.memory_map(file) as content:
            return len(pa.ipc.open_stream(content).schema)
    except (OSError, pa.ArrowException):  # the reader says what is wrong with it
        return 0


def _loaded(reader: str, files: list[str], streaming: bool, **options: Any) -> Dataset | IterableDataset:
    exact = [file if "://" in file else glob.escape(file) for file in files]
    return load_dataset(
        reader, data_files=exact, split="train", cache_dir=tables_folder(), streaming=streaming, **options
    )


# ── csv and tsv ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _read_delimited(name: str, files: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Rows of csv or tsv files; files of different dialects are read one after the other."""
    dialects = [dialect_of(file, name) for file in files]
    for file, dialect in zip(files, dialects, strict=True):
        if dialect.escape and has_null_marks(file):
            hint = "export missing values as empty fields"
            raise unreadable(f'{file}: beside \\" for a quotation mark, \\N would be the text N', hint=hint)
    names = [_header(file, dialect) for file, dialect in zip(files, dialects, strict=True)]
    for file, columns in zip(files, names, strict=True):
        if set(columns) != set(names[0]):
            raise unreadable(different_columns(file, columns, files[0], names[0]))
    features = Features(dict.fromkeys(names[0], Value("string")))
    pieces = []
    for dialect, group in groupby(zip(files, dialects, strict=True), key=lambda pair: pair[1]):
        same = [file for file, _ in group]
        pieces.append((_stream if streaming else _stored)(same, dialect, features))
    return pieces[0] if len(pieces) == 1 else concatenate_datasets(pieces)


def _stored(files: list[str], dialect: Dialect, features: Features) -> Dataset:
    rows = stored_rows("csv", files, lambda: (features, _checked_tables(files, dialect, list(features))), repr(dialect))
    if not len(rows):
        raise no_rows(files)
    return rows


def _stream(files: list[str], dialect: Dialect, features: Features) -> IterableDataset:
    return IterableDataset.from_generator(_rows, gen_kwargs={"files": files, "dialect": dialect}, features=features)


def _rows(files: list[str], dialect: Dialect) -> Iterator[dict[str, Any]]:
    for file in files:
        for table in _tables(file, dialect):
            yield from table.to_pylist()


def _checked_tables(files: list[str], dialect: Dialect, names: list[str]) -> Iterator[pa.Table]:
    """Yields the rows of all files. Raises UserError at the end of a file that pandas has not read as it was written, which it
    does silently: it fills up short rows, and a text that begins with a quotation mark, and is none, swallows the rows up to the
    next mark. Only where one of these may have happened is it worth going through the file again."""
    for file in files:
        may_be_ragged = may_be_swallowed = may_be_joined = False
        for table in _tables(file, dialect):
            may_be_ragged |= table.column(table.num_columns - 1).null_count > 0
            may_be_swallowed |= any(map(_has_lines, table.columns))
            may_be_joined |= _has_header(table)
            yield table.select(names)
        if may_be_ragged and (fault := ragged(file, dialect)):
            raise unreadable(fault)
        if may_be_swallowed and (fault := misquoted(file, dialect)):
            hint = 'write "" for a mark that is part of a text and put the whole field in marks, as writers of csv do'
            raise unreadable(fault, hint=hint)
        if may_be_joined and (fault := repeated_header(file, dialect)):
            raise unreadable(fault, hint="remove these lines: files were joined with their headers")


def _tables(file: str, dialect: Dialect) -> Iterator[pa.Table]:
    """Yields the rows with every cell as text, and empty cells as missing."""
    missing, marks = pa.scalar(None, pa.string()), pa.array(_MISSING)
    with opened(file) as content:
        chunks = pd.read_csv(
            content, dtype=str, na_filter=False, encoding="utf-8-sig", chunksize=_ROWS,
            header=0, names=_header(file, dialect), **dialect.for_pandas,
        )  # fmt: skip
        for chunk in chunks:
            cells_by_name = {name: pa.array(chunk[name], pa.string()) for name in chunk.columns}
            yield pa.table(
                {
                    name: pc.if_else(pc.is_in(cells, marks), missing, _without_formula(cells))
                    for name, cells in cells_by_name.items()
                }
            )


def _without_formula(cells: pa.Array) -> pa.Array:
    if not pc.any(pc.starts_with(cells, '="')).as_py():
        return cells
    return pc.replace_substring_regex(cells, '^="([^"]*)"$', r"\1")


def _header(file: str, dialect: Dialect) -> list[str]:
    """Returns the names of the columns without the blanks around them. Raises UserError where two have the same name, or the
    first row has more fields, of which pandas would make an index."""
    with opened(file) as content, fields_of_any_size():
        lines = (line.decode("utf-8-sig", errors="replace") for line in content)
        rows = (row for row in islice(dialect.reader(lines), dialect.num_skipped, None) if row)
        names: list[str] = next(rows, [])
        first: list[str] = next(rows, [])
    if not names:
        raise unreadable(f"{file}: the file is empty")
    require_few_columns(file, len(names))
    if len(first) > len(names) and (fault := ragged(file, dialect)):
        raise unreadable(fault)
    names = [name.strip() or f"column {number}" for number, name in enumerate(names, start=1)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise unreadable(f"{file}: several columns have the name {repeated[0]!r}")
    return names


def _refuse_other_columns(reader: str, files: list[str]) -> None:
    """Raises UserError naming the first file whose columns are not those of the first one."""
    first: list[str] = []
    for file in files:
        columns = list(next(iter(_loaded(reader, [file], True)), {}))
        if set(first or columns) != set(columns):
            raise unreadable(different_columns(file, columns, files[0], first))
        first = first or columns


def _has_header(table: pa.Table) -> bool:
    """Whether all cells of a row are the names of their columns."""
    if table.num_columns < 2:
        return False
    hits = [pc.equal(pc.utf8_trim_whitespace(table.column(name)), name) for name in table.column_names]
    return bool(pc.any(reduce(pc.and_, hits)).as_py())


def _has_lines(cells: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.match_substring_regex(cells, "[\r\n]")).as_py())
