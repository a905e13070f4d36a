"""What `predict` is asked: lines of texts, rows of tables, names of images and recordings.

A line or row that cannot be read is an input too, with its fault, so that there is one output for each of them.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import irregular
from sft_dist.recipe.references import suffix_of
from sft_dist.recipe.schema import Recipe

if TYPE_CHECKING:
    from sft_dist.tasks.base import Task

# `--format`, or the suffix of a file without its dot -> the format of `data.format`
TABLES = {"csv": "csv", "tsv": "tsv", "jsonl": "json", "json": "json", "parquet": "parquet", "arrow": "arrow"}
FORMATS = ("txt", *TABLES)
STDIN = "standard input"
_DELIMITERS = ",\t;|"
_COLUMN_NAME = re.compile(r"[\w.-]+")
_READ_BYTES = 2**16


@dataclass(frozen=True)
class Input:
    """One line, row or file."""

    source: str  # for messages: `a.csv: row 3`
    file: str  # as the user named it; `-`: standard input
    row: Mapping[str, str] = field(default_factory=dict)  # input role -> text, or path of an image or recording
    columns: Mapping[str, Any] = field(default_factory=dict)  # of the table, for the output
    fault: str = ""  # why it cannot be read


@dataclass(frozen=True)
class InputReader:
    """Reads files, and `-` for standard input, as training reads them."""

    task: Task
    format: str = ""  # one of FORMATS; empty: by the file's suffix or, of standard input, its first line
    id_column: str = ""  # is taken along to the output

    @property
    def recipe(self) -> Recipe:
        return self.task.recipe

    @property
    def roles(self) -> list[str]:
        """The input roles that a row has: the first, and those that the recipe maps."""
        first, *others = self.task.input_roles
        return [first, *(role for role in others if role in self.recipe.data.columns)]

    @property
    def _is_conversation(self) -> bool:
        return set(self.recipe.task.columns.values()) == {"if present"}

    def read(self, file: str) -> Iterator[Input | None]:
        """Yields the inputs; None where it would wait for more of standard input. Raises UserError where the file cannot be read
        at all."""
        try:
            yield from self._read_stdin() if file == "-" else self._read_file(file)
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from error

    def _read_file(self, file: str) -> Iterator[Input | None]:
        path = Path(file)
        name = self.format or suffix_of(path).removeprefix(".")
        if self.roles[0] in self.recipe.task.media and not self.format and name not in (*FORMATS, ""):
            self._refuse_id(file)
            fault = "" if path.is_file() else f"{file}: no such file"
            yield Input(file, file, {self.roles[0]: file}, fault=fault)
        elif name in TABLES:
            yield from self._rows(file, TABLES[name])
        else:
            if (kind := irregular(path)) and kind != "a named pipe":  # `predict MODEL <(command)` is one
                raise UserError(f"{file}: is {kind}, not a file")
            with path.open("rb") as stream:
                yield from self._texts(enumerate(stream, 1), file, file)

    def _read_stdin(self) -> Iterator[Input | None]:
        lines = _available_lines(sys.stdin.buffer)
        name = self.format
        if not name:
            first = next((line for line in lines if line is not None), None)
            if first is None:
                return
            lines = itertools.chain([first], lines)
            name = self._format_of(first[1].decode("utf-8-sig", errors="replace"))
            if name != "txt":
                print(f"{STDIN}: read as {name}; --format txt takes its lines for texts", file=sys.stderr)
        if name == "txt":
            yield from self._texts(lines, STDIN, "-")
        elif name == "jsonl":
            yield from self._json_lines(lines, STDIN, "-")
        else:
            yield from self._spooled(lines, name)

    def _format_of(self, line: str) -> str:
        """Returns the format of standard input by its first line: an object with the columns that are read, a header that names
        them, or a text."""
        names = {self.recipe.data.columns.get(role, role) for role in self.roles}
        if self._is_conversation:
            names = {self.recipe.data.columns.get(role, role) for role in self.recipe.task.columns}

        def has_columns(columns: Iterable[str]) -> bool:
            return bool(names & set(columns)) if self._is_conversation else names <= set(columns)

        try:
            row = json.loads(line)
            return "jsonl" if isinstance(row, dict) and has_columns(row) else "txt"
        except (ValueError, RecursionError):
            pass
        for delimiter in _DELIMITERS:
            try:
                fields = [name.strip() for name in next(csv.reader([line.strip()], delimiter=delimiter), [])]
            except csv.Error:  # a carriage return within the line, or a field longer than Python reads: no header
                return "txt"
            if has_columns(fields) and all(map(_COLUMN_NAME.fullmatch, fields)):
                return "tsv" if delimiter == "\t" else "csv"
        return "txt"

    def _spooled(self, lines: Iterable[tuple[int, bytes] | None], name: str) -> Iterator[Input | None]:
        """Reads a table of standard input by the reader of files, which looks at it several times."""
        folder = tempfile.mkdtemp(prefix="sft-dist-")
        file = os.path.join(folder, f"{STDIN}.{name}")
        try:
            with open(file, "wb") as stream:
                stream.writelines(line for _, line in filter(None, lines))
            yield from self._rows(file, TABLES[name], "-")
        except UserError as error:
            raise UserError(str(error).replace(file, STDIN)) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _rows(self, file: str, name: str, user_file: str = "") -> Iterator[Input | None]:
        """Yields the rows of a table. Raises UserError with the line of a fault that makes all rows doubtful."""
        # Imported late: a folder without a model is refused before the readers are loaded.
        from sft_dist.data.formats.faults import fault_in
        from sft_dist.data.formats.json_rows import is_row
        from sft_dist.data.formats.tables import read_table

        title = STDIN if user_file == "-" else file
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file")
        if name == "json" and suffix_of(file) != ".json":
            with open(file, "rb") as stream:
                if is_row(stream.readline()):
                    stream.seek(0)
                    yield from self._json_lines(enumerate(stream, 1), title, user_file or file)
                    return
        if fault := fault_in(name, [file]):
            raise UserError(fault)
        for number, row in enumerate(read_table(name, [file], streaming=True), 1):
            yield self._input(row, f"{title}: row {number}", number, user_file or file)

    def _json_lines(self, lines: Iterable[tuple[int, bytes] | None], title: str, file: str) -> Iterator[Input | None]:
        # Imported late, as above.
        from sft_dist.data.formats.json_rows import row_of_line

        for entry in lines:
            if entry is None:
                yield None
                continue
            number, line = entry
            if not line.strip():
                continue
            location = f"{title}:{number}"
            try:
                yield self._input(row_of_line(_decoded(line, number), location), location, number, file)
            except json.JSONDecodeError as error:
                yield Input(location, file, fault=f"{location}: not JSON ({error})")
            except (UserError, ValueError) as error:
                yield Input(location, file, fault=_with_location(location, error))

    def _texts(self, lines: Iterable[tuple[int, bytes] | None], title: str, file: str) -> Iterator[Input | None]:
        self._refuse_id(title)
        roles = self.roles
        for entry in lines:
            if entry is None:
                yield None
                continue
            number, line = entry
            location = f"{title}:{number}"
            try:
                text = _decoded(line, number)
            except ValueError as error:
                yield Input(location, file, fault=_with_location(location, error))
                continue
            texts = text.split("\t") if len(roles) > 1 else [text]
            if len(texts) == len(roles):
                yield Input(location, file, dict(zip(roles, texts, strict=True)))
            else:
                message = f"{len(roles)} texts separated by a tab are needed ({', '.join(roles)})"
                yield Input(location, file, fault=f"{location}: {message}")

    def _input(self, row: Mapping[str, Any], location: str, number: int, file: str) -> Input:
        columns = {self.id_column: row[self.id_column]} if self.id_column in row else {}
        try:
            if self.id_column and not columns:
                raise UserError(Problem(f"no column {self.id_column!r}", "--id", valid=tuple(map(str, row))))
            return Input(location, file, self._texts_in(row, number), columns)
        except UserError as error:
            return Input(location, file, {}, columns, _with_location(location, error))

    def _texts_in(self, row: Mapping[str, Any], number: int) -> dict[str, str]:
        mapped = self.recipe.data.columns
        by_role = {
            role: row[mapped.get(role, role)] for role in self.recipe.task.columns if mapped.get(role, role) in row
        }
        if self._is_conversation and by_role:
            return self.task.question_of(by_role, number)
        names = {role: mapped.get(role, role) for role in self.roles}
        if missing := [name for name in names.values() if name not in row]:
            raise UserError(Problem(f"no column {missing[0]!r}", valid=tuple(map(str, row))))
        return {role: _text(row[name]) for role, name in names.items()}

    def _refuse_id(self, file: str) -> None:
        if self.id_column:
            hint = f"give a table, or --format {', '.join(TABLES)}"
            raise UserError(
                Problem(f"{file}: only rows of tables have columns", "--id", value=self.id_column, hint=hint)
            )


def _available_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes] | None]:
    """Yields (number, line), and None before it waits for more, so that a program that asks line by line gets its answers."""
    number, incomplete = 0, b""
    while block := stream.read1(_READ_BYTES):  # type: ignore[attr-defined]
        *lines, incomplete = (incomplete + block).split(b"\n")
        for line in lines:
            number += 1
            yield number, line + b"\n"
        if lines:
            yield None
    if incomplete:
        yield number + 1, incomplete


def _decoded(line: bytes, number: int) -> str:
    """Raises ValueError."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None


def _with_location(location: str, error: Exception) -> str:
    return str(error) if location in str(error) else f"{location}: {error}"


def _text(value: Any) -> str:
    """Lists and objects as JSON: a conversation, an entity, a box. What is missing is an empty text."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
