"""JSON files: one object a line, or one document with all rows. Each column gets the type that all of its values have, and
a text is a text, whatever it looks like: readers that guess types from values take texts for dates, from the first rows
only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Json, List, Value

from sft_dist.data.formats.dialect import opened
from sft_dist.data.formats.faults import different_columns, no_rows, require_few_columns, unreadable
from sft_dist.data.formats.stored import stored_rows
from sft_dist.recipe.errors import UserError

_BATCH = 1000  # rows written at a time
# Arrow type -> the kinds of values that it holds exactly; whatever is of other kinds together is text
_TYPES = {"bool": {"bool"}, "int64": {"small", "int"}, "float64": {"small", "float"}}
_MAX_DEPTH = 200  # of lists and objects in each other; Python parses 1,000
_MAX_ARROW_DEPTH = 30
_INT64 = range(-(2**63), 2**63)
_EXACT_IN_FLOAT = range(-(2**53), 2**53 + 1)


def read_json(files: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Rows of all files, in order. Read twice, first for the types. Raises UserError with the line of a fault. A stream
    does not know its columns."""
    if streaming:
        return IterableDataset.from_generator(_stream, gen_kwargs={"files": files})

    def read() -> tuple[Features, Iterator[pa.Table]]:
        shape, columns_by_file = _Shape(), dict[str, dict[str, None]]()
        for file in files:
            columns = columns_by_file[file] = {}
            for _, row in _numbered([file]):
                shape.add(row)
                columns.update(dict.fromkeys(row))
                require_few_columns(file, len(columns))
            if columns and set(columns) != set(first := columns_by_file[files[0]]):
                raise unreadable(different_columns(file, list(columns), files[0], list(first)))
        if not shape.fields:
            raise no_rows(files)
        return _features_of(shape), _tables(files, shape)

    return stored_rows("json", files, read)


def table_of_rows(rows: list[dict[str, Any]]) -> Dataset:
    """Returns rows of a stream as a table."""
    shape = _Shape()
    for row in rows:
        shape.add(row)
    return Dataset(_table([("", row) for row in rows], shape))


def _tables(files: list[str], shape: _Shape) -> Iterator[pa.Table]:
    rows = _numbered(files)
    while batch := list(islice(rows, _BATCH)):
        yield _table(batch, shape)


def _stream(files: list[str]) -> Iterator[dict[str, Any]]:
    for _, row in _numbered(files):
        yield row


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _numbered(files: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, row)."""
    for file in files:
        with opened(file) as content:
            first = content.readline()
            is_lines = is_row(first)
        yield from _lines(file) if is_lines else _document(file)


def is_row(line: bytes) -> bool:
    """Whether the first line of a file is a row of its own."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not _are_columns(row)


def _lines(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with opened(file) as content:
        for number, line in enumerate(content, start=1):
            if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                place = f"{file}, line {number}"
                yield place, row_of_line(text, place)


def row_of_line(text: str, place: str) -> dict[str, Any]:
    """Returns the row on a line of jsonl. Raises UserError, and ValueError for what is no object."""
    row = _parsed(text, place)
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected an object with the columns as keys")
    return row


def _document(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A list of rows, or of texts; one object; or what pandas writes by default: an object of columns, each an object
    with the row numbers as keys."""
    with opened(file) as content:
        text = content.read().decode("utf-8-sig")
    try:
        document = _parsed(text, file)
    except ValueError:
        if not text.lstrip().startswith("{"):  # rows after empty lines, or over several lines each
            raise
        yield from _concatenated(file, text)
        return
    if isinstance(document, dict):
        document = _rows_of_columns(document) if _are_columns(document) else [document]
    if not isinstance(document, list):
        raise ValueError(f"{file}: expected a list of rows")
    for index, row in enumerate(document):
        row = {"text": row} if isinstance(row, str) else row
        if not isinstance(row, dict):
            raise unreadable(f"{file}, row {index}: expected an object with the columns as keys")
        yield f"{file}, row {index}", row


class _RepeatedKeyError(ValueError):
    """An object has two values under one key, of which `json` silently takes the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return content


class _InfinityError(ValueError):
    """A number is infinite, which JSON does not have, and which no task can use."""


def _constant(name: str) -> None:
    """Returns None for `NaN`, which Python and pandas write for a missing value."""
    if name != "NaN":
        raise _InfinityError(name)


def _parsed(text: str, location: str) -> Any:
    """Returns the value of a JSON text. Raises UserError where a key is repeated, a number is infinite or the value is nested deeper
    than tables can store, ValueError for any other fault."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        if text.count("[") + text.count("{") > _MAX_DEPTH and _depth(value) > _MAX_DEPTH:
            raise RecursionError
    except _RepeatedKeyError as error:
        raise _repeated_key(location, error) from None
    except _InfinityError as error:
        raise _infinite(location, error) from None
    except RecursionError:
        raise unreadable(f"{location}: nested more than {_MAX_DEPTH} deep") from None
    return value


def _repeated_key(location: str, error: _RepeatedKeyError) -> UserError:
    return unreadable(f"{location}: an object has two values of the key {str(error)!r}")


def _infinite(location: str, error: _InfinityError) -> UserError:
    return unreadable(f"{location}: {error} is not a number of JSON", hint="write null where a value is missing")


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _are_columns(document: dict[str, Any]) -> bool:
    """Whether each value is an object with the row numbers as keys, the same in all."""
    columns = list(document.values())
    if not all(isinstance(column, dict) and column for column in columns):
        return False
    numbers = [str(number) for number in range(len(columns[0]))] if columns else []
    return bool(columns) and all(list(column) == numbers for column in columns)


def _rows_of_columns(document: dict[str, Any]) -> list[dict[str, Any]]:
    numbers = next(iter(document.values()))
    return [{name: column[number] for name, column in document.items()} for number in numbers]


def _concatenated(file: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects one after the other, each over any number of lines."""
    decoder, position = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant), 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        try:
            row, position = decoder.raw_decode(text, position)
        except _RepeatedKeyError as error:
            raise _repeated_key(file, error) from None
        except _InfinityError as error:
            raise _infinite(file, error) from None
        if not isinstance(row, dict):
            raise ValueError(f"{file}: expected objects with the columns as keys")
        yield f"{file}, line {text.count(chr(10), 0, position) + 1}", row


# ── types ───────────────────────────────────────────────────────────────────────────────────────────────────────────
class _Shape:
    """What the values at one place of all rows have been."""

    def __init__(self) -> None:
        self.leaves: set[str] = set()
        self.items: _Shape | None = None
        self.fields: dict[str, _Shape] = {}
        self.keys: set[frozenset[str]] = set()  # that objects here have had; of rows of a table they may differ

    def add(self, value: Any) -> None:
        match value:
            case None:
                pass
            case dict():
                if len(self.keys) < 2:
                    self.keys.add(frozenset(value))
                for key, inner in value.items():
                    if key not in self.fields:
                        self.fields[key] = _Shape()
                    self.fields[key].add(inner)
            case list():
                self.items = self.items or _Shape()
                for item in value:
                    self.items.add(item)
            case _:
                self.leaves.add(_leaf(value))

    @property
    def mixes_numbers(self) -> bool:
        """Whether whole numbers stand beside fractions: as floats, 5 would be the text 5.0."""
        return self.leaves == {"small", "float"} and self.items is None and not self.keys

    @property
    def is_text(self) -> bool:
        """Whether the values are stored as texts: they are, or numbers that no type holds exactly, or of several kinds."""
        return not any(self.leaves <= kinds for kinds in _TYPES.values())

    def feature(self, depth: int = 0) -> Any:
        """Returns None where the values are of no one structure, or of one that Arrow does not nest so deeply."""
        if depth > _MAX_ARROW_DEPTH:
            return None
        kinds = bool(self.leaves) + (self.items is not None) + bool(self.keys)
        if kinds > 1:
            return None
        if self.items is not None:
            return None if (item := self.items.feature(depth + 1)) is None else List(item)
        if self.keys:
            inner = {key: field.feature(depth + 1) for key, field in self.fields.items()}
            return inner if inner and len(self.keys) == 1 and None not in inner.values() else None
        dtypes = (dtype for dtype, kinds in _TYPES.items() if self.leaves and self.leaves <= kinds)
        return Value(next(dtypes, "string"))

    def converted(self, value: Any) -> Any:
        """Returns a value with numbers as texts where they stand among texts."""
        if value is None:
            return None
        if isinstance(value, list):
            return [self.items.converted(item) for item in value] if self.items else []
        if isinstance(value, dict):
            return {key: self.fields[key].converted(inner) for key, inner in value.items()}
        return value if isinstance(value, str) or not self.is_text else json.dumps(value)


def _leaf(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return "small" if value in _EXACT_IN_FLOAT else "int" if value in _INT64 else "huge"
        case float():
            return "float"
    return "text"


def _features_of(shape: _Shape) -> Features:
    kinds = {name: None if field.mixes_numbers else field.feature() for name, field in shape.fields.items()}
    return Features({name: Json() if kind is None else kind for name, kind in kinds.items()})


def _table(rows: list[tuple[str, dict[str, Any]]], shape: _Shape) -> pa.Table:
    """Returns (place, row)s as a table. Raises UserError naming a row with a text that is no valid Unicode."""
    features = _features_of(shape)
    schema = features.arrow_schema
    arrays = []
    for name, field in shape.fields.items():
        values = [row.get(name) for _, row in rows]
        kind = schema.field(name).type
        try:
            if isinstance(features[name], Json):
                texts = [
                    None if value is None else json.dumps(_storable(value), ensure_ascii=False) for value in values
                ]
                arrays.append(pa.ExtensionArray.from_storage(kind, pa.array(texts, kind.storage_type)))
            else:
                arrays.append(pa.array([field.converted(value) for value in values], kind))
        except UnicodeEncodeError:
            place = next(place for place, row in rows if _has_lone_surrogate(row))
            raise unreadable(f"{place}: half of a surrogate pair (such as \\ud83d alone) is no text") from None
    return pa.Table.from_arrays(arrays, schema=schema)


def _storable(value: Any) -> Any:
    """Writes whole numbers beyond 64 bits, which `datasets` cannot read back, as texts, as in columns of them."""
    if isinstance(value, dict):
        return {key: _storable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_storable(inner) for inner in value]
    return str(value) if type(value) is int and value not in _INT64 else value


def _has_lone_surrogate(row: dict[str, Any]) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in json.dumps(row, ensure_ascii=False))
