"""Rows of a source as a task stores them, with a reason where one is dropped, and digests by which repeated ones are recognised.

Texts are cleaned, media checked, class numbers replaced by names. An error names the split, the row and the column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import xxhash
from datasets import Audio, Dataset, Features, Image, Value

from sft_dist.data.clean import clean_text, type_name
from sft_dist.data.columns import columns_of, converter_of, require_column, select_where
from sft_dist.data.images import content
from sft_dist.data.map_rows import BATCH, map_rows
from sft_dist.data.rows import GROUP, ROW
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe

if TYPE_CHECKING:
    from sft_dist.tasks.base import Task

EMPTY = ("no label", "empty text", "empty conversation", "no answer", "empty answer")  # what `drop_empty` drops

# Columns beside those that a task stores: why a row is dropped, digests of its input and of what is learned from it.
REASON = "dropped for"
IDENTITY = ("input, first half", "input, second half")
TARGET = "what is learned"


def read_rows(source: Dataset, split: str, recipe: Recipe, task: Task, to: Path, first: int = 0) -> Dataset:
    """The rows that `data.where` keeps, as the task stores them, with ROW (counted from `first`); those it drops are empty
    and have a REASON, the others the digests of their input (IDENTITY) and of what is learned from it (TARGET). Written
    under `to`."""
    with _naming_bad_text(source, split):
        return _read_rows(source, split, recipe, task, to, first)


def _read_rows(source: Dataset, split: str, recipe: Recipe, task: Task, to: Path, first: int) -> Dataset:
    data = recipe.data
    for role in data.columns:
        require_column(source, data.columns[role], role)
    selected = select_where(source, split, data)
    reader = _Reader(source, split, recipe, task)
    columns = {*reader.columns.values(), *([data.split.group] if data.split.group else [])}
    if data.split.group:
        require_column(source, data.split.group, "split.group", "data.split.group")
    table = source.select_columns(sorted(columns))
    for name, feature in table.features.items():
        if isinstance(feature, (Image, Audio)):
            table = table.cast_column(name, type(feature)(decode=False))
    if len(selected) < len(source):
        table = table.select(selected)
    table = table.add_column(ROW, first + selected)
    extra = {ROW: Value("int64"), REASON: Value("string"), GROUP: Value("string")} | {
        name: Value("int64") for name in (*IDENTITY, TARGET)
    }
    if not data.split.group:
        extra.pop(GROUP)
    return map_rows(table, reader, Features({**task.row_features, **extra}), to, f"{split}-rows")


def read_row(task: Task, values: dict[str, Any], number: int) -> dict[str, Any] | str:
    """Returns what `task.read` does. Raises UserError naming the row, also for values of types that the task did not expect."""
    try:
        return task.read(values, number)
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(Problem(f"row {number}: {type(error).__name__}: {error}", "data.source")) from error


class _Reader:
    """Rows of the source, by column -> rows as the task stores them. Sent to other processes."""

    def __init__(self, source: Dataset, split: str, recipe: Recipe, task: Task) -> None:
        self.split, self.data, self.task = split, recipe.data, task
        self.columns, self.media = columns_of(source, recipe), recipe.task.media
        self.converters = {name: converter_of(source.features[name]) for name in self.columns.values()}
        self.stored = tuple(task.row_features)
        self.learned = [name for name in self.stored if name not in task.input_roles]

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {name: [] for name in (*self.stored, ROW, REASON, *IDENTITY, TARGET)}
        values = {
            role: self._values(role, batch[name], self.converters[name], batch[ROW])
            for role, name in self.columns.items()
        }
        for position, number in enumerate(batch[ROW]):
            row = self._read({role: column[position] for role, column in values.items()}, number)
            if not isinstance(row, str) and self._too_long(row):
                row = "too long"
            if isinstance(row, str):
                self._check(row, number)
                stored: dict[str, Any] = {}
                columns[REASON].append(row)
                digests = (0, 0, 0)
            else:
                stored = row
                columns[REASON].append(None)
                target = [_comparable(row.get(name)) for name in self.learned]
                digests = *_digest(self.task.identity(row)), _digest(json.dumps(target))[0]
            for name in self.stored:
                columns[name].append(stored.get(name))
            columns[ROW].append(number)
            for name, value in zip((*IDENTITY, TARGET), digests, strict=True):
                columns[name].append(value)
        if self.data.split.group:
            with _naming_split(self.split):
                values_of_rows = zip(batch[self.data.split.group], batch[ROW], strict=True)
                columns[GROUP] = [_group_of(value, number) for value, number in values_of_rows]
        return columns

    def _read(self, values: dict[str, Any], number: int) -> dict[str, Any] | str:
        with _naming_split(self.split):
            return read_row(self.task, values, number)

    def _values(
        self, role: str, values: list[Any], convert: Callable[[Any], Any] | None, numbers: list[int]
    ) -> list[Any]:
        if convert is not None:
            values = [convert(value) for value in values]
        if role in self.task.text_roles:
            with _naming_split(self.split):
                return [
                    clean_text(value, self.data.clean, role, number)
                    for value, number in zip(values, numbers, strict=True)
                ]
        if role in self.media:
            with _naming_split(self.split):
                return [_medium(value, role, number) for value, number in zip(values, numbers, strict=True)]
        return values

    def _too_long(self, row: dict[str, Any]) -> bool:
        max_chars = self.data.clean.max_chars
        return max_chars is not None and self.task.num_chars(row) > max_chars

    def _check(self, reason: str, number: int) -> None:
        if reason in EMPTY and not self.data.clean.drop_empty:
            message = f"row {number} of {self.split}: {reason}"
            raise UserError(Problem(message, path="data.clean.drop_empty", value="false"))


def _medium(value: Any, role: str, number: int) -> dict[str, Any] | None:
    """Returns an image or recording as it is stored. Raises UserError naming the row."""
    if value is None or value == {}:
        return None
    if isinstance(value, str):
        return {"path": value, "bytes": None}
    path, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (None, None)
    is_stored = isinstance(value, dict) and bool({"path", "bytes"} & set(value))
    if is_stored and isinstance(path, str | None) and isinstance(content, bytes | None):
        return {"path": path, "bytes": content}
    message = f"row {number}: the name of a file is needed, not {type_name(value)}"
    hint = "write the path of the file, relative to the table, or an object with `path` or `bytes`"
    raise UserError(Problem(message, f"data.columns.{role}", value=repr(value)[:200], hint=hint))


def _group_of(value: Any, row: int) -> str:
    """Returns the name of a row's group; 1 and 1.0 are the same. Raises UserError naming the row."""
    if value is None or value == "" or value != value:
        hint = "give each row a group, or exclude such rows with data.where"
        raise UserError(Problem(f"row {row}: no group", "data.split.group", hint=hint))
    if isinstance(value, (list, dict, bytes)):
        message = f"row {row}: a group is a text or a number, not {type_name(value)}"
        raise UserError(Problem(message, "data.split.group", value=repr(value)[:200]))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@contextmanager
def _naming_split(split: str) -> Iterator[None]:
    """Puts the split before the row that an error names."""
    try:
        yield
    except UserError as error:
        problems = [replace(problem, message=f"{split} {problem.message}") for problem in error.problems]
        raise UserError(problems) from None


@contextmanager
def _naming_bad_text(source: Dataset, split: str) -> Iterator[None]:
    """Raises UserError with the row of a text that is not UTF-8, as a binary file may hold it. `datasets` says so by
    UnicodeDecodeError, when it comes to the row."""
    try:
        yield
    except UnicodeDecodeError as error:
        place = _place_of_bad_text(source)
        if place is None:
            raise
        row, column = place
        message = f"{split} row {row}: the column {column!r} holds bytes that are not UTF-8"
        raise UserError(Problem(message, "data.source", value=repr(error.object)[:200])) from None


def _place_of_bad_text(source: Dataset) -> tuple[int, str] | None:
    """Returns (row, column)."""
    for name in source.column_names:
        first = 0
        for batch in source.select_columns([name]).with_format("arrow").iter(BATCH):
            if not _is_valid(batch):
                return first + next(
                    index for index in range(len(batch)) if not _is_valid(batch[index : index + 1])
                ), name
            first += len(batch)
    return None


def _is_valid(table: pa.Table) -> bool:
    try:
        pa.concat_tables([table]).combine_chunks().validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _comparable(value: Any) -> Any:
    """A stored value as JSON can hold it, an image by what is in its file."""
    return content(value).hex() if isinstance(value, dict) and set(value) == {"path", "bytes"} else value


def _digest(identity: str | bytes) -> tuple[int, int]:
    """128 bits, as two numbers: a billion rows have not even one chance in 10^20 of two taken for one."""
    digest = xxhash.xxh3_128_digest(
        identity if isinstance(identity, bytes) else identity.encode(errors="surrogatepass")
    )
    return int.from_bytes(digest[:8], "big", signed=True), int.from_bytes(digest[8:], "big", signed=True)
