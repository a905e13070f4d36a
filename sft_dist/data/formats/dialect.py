"""How the fields of a csv or tsv file are divided and quoted, by what the file itself shows.

Excel divides by `;` where commas are decimal points and may begin with a line `sep=;`, Spark puts a backslash before a
quotation mark, and many writers of tsv quote nothing.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import IO, Any, Literal

import fsspec

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import irregular
from sft_dist.recipe.references import COMPRESSIONS

DELIMITERS = {"csv": ",", "tsv": "\t"}  # data.format -> the delimiter where the file shows no other
_OTHER_DELIMITERS = (";", "\t", "|")
_SAMPLE_BYTES, _SAMPLE_ROWS = 2**18, 200
MAX_LINE_BYTES = 2**28  # of a packed file, whose size does not show what it holds
_ANNOUNCED = re.compile(r'"?sep=(.)"?\s*')
_NULL = re.compile(rb"(?m)(?:^|[,;\t|])\\N(?=[,;\t|\r\n]|\Z)")


@dataclass(frozen=True)
class Dialect:
    """What `csv` and pandas need to know to read a file."""

    delimiter: str
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    escape: str | None = None  # character before a quotation mark that is part of a text; None: marks are doubled
    num_skipped: int = 0  # lines before the header
    skips_blanks: bool = False  # after a delimiter, before a quotation mark

    def reader(self, lines: Iterable[str], strict: bool = False) -> Any:
        """Returns a `csv.reader` of the lines that follow the skipped ones."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=self.quoting,
            escapechar=self.escape,
            doublequote=self.escape is None,
            skipinitialspace=self.skips_blanks,
            strict=strict,
        )

    @property
    def for_pandas(self) -> dict[str, Any]:
        return {
            "sep": self.delimiter,
            "quoting": self.quoting,
            "escapechar": self.escape,
            "doublequote": self.escape is None,
            "skipinitialspace": self.skips_blanks,
            "skiprows": self.num_skipped or None,
        }


def dialect_of(file: str, name: str) -> Dialect:
    """Returns the dialect of a file of the format `name`. Of a URL only the beginning is read."""
    delimiter, num_skipped = (DELIMITERS[name], 0) if name != "csv" else _delimiter_of(file)
    dialect = Dialect(delimiter, num_skipped=num_skipped)
    if name == "csv" and _quotes_after_blanks(_sample(file), dialect):
        dialect = replace(dialect, skips_blanks=True)
    if "://" in file:
        return dialect
    if is_plain(file, dialect):
        return replace(dialect, quoting=csv.QUOTE_NONE)
    escaped = replace(dialect, escape="\\")
    if _has_escaped_quotes(file) and misquoted(file, dialect) and not misquoted(file, escaped):
        return escaped
    return dialect


def _delimiter_of(file: str) -> tuple[str, int]:
    """Returns the delimiter of a csv file and how many lines come before its header: the comma unless its first rows
    have different numbers of fields by it, or one field, and more by another delimiter, all of them the same number."""
    lines = _sample(file)
    if lines and (announced := _ANNOUNCED.fullmatch(lines[0])):
        return announced.group(1), 1
    widths = {delimiter: _width(lines, delimiter) for delimiter in (",", *_OTHER_DELIMITERS)}
    return next((delimiter for delimiter, width in widths.items() if width > 1), ","), 0


def _sample(file: str) -> list[str]:
    """Returns the first lines."""
    with opened(file) as content:
        sample = content.read(_SAMPLE_BYTES)
    lines = sample.decode("utf-8-sig", errors="replace").splitlines(keepends=True)
    return lines[:-1] if len(sample) == _SAMPLE_BYTES else lines  # the last may be cut


def _quotes_after_blanks(lines: list[str], dialect: Dialect) -> bool:
    """Whether fields are quoted behind a blank (`"a, b", "c"`), where readers take the mark for a part of the text."""
    lines = lines[dialect.num_skipped :]
    if not any(f'{dialect.delimiter} "' in line for line in lines):
        return False
    with fields_of_any_size():
        fields = [field for row in islice(dialect.reader(lines), _SAMPLE_ROWS) for field in row]
        if not any(field.startswith(" ") and field.lstrip(" ").startswith('"') for field in fields):
            return False
        try:
            rows = list(islice(replace(dialect, skips_blanks=True).reader(lines, strict=True), _SAMPLE_ROWS))
        except csv.Error:
            return False
    return len({len(row) for row in rows if row}) == 1


def has_null_marks(file: str) -> bool:
    """Whether a field is `\\N`, as MySQL, PostgreSQL and Hive write a missing value."""
    with opened(file) as content:
        return any(_NULL.search(line) for line in content)


def _width(lines: list[str], delimiter: str) -> int:
    """Returns the number of fields that all rows of the sample have; 0 where they differ."""
    with fields_of_any_size():
        try:
            widths = {len(row) for row in islice(csv.reader(lines, delimiter=delimiter), _SAMPLE_ROWS) if row}
        except csv.Error:
            return 0
    return widths.pop() if len(widths) == 1 else 0


def undivided(columns: Sequence[str], name: str) -> str:
    """Why a table's only column hides the column `name`: its fields are divided by something else than was expected, or it
    is no table. Empty where neither is so."""
    if len(columns) == 1 and columns[0] != name:
        names = re.split(r"([^\w ]+|\s+)", columns[0])
        if len(names) > 1 and name in names[::2]:
            return f"its fields are divided by {names[1]!r}"
    if columns and columns[0].startswith(("{", "[{")):
        return "it holds JSON"
    return ""


def _has_escaped_quotes(file: str) -> bool:
    with opened(file) as content:
        last = b""
        while block := content.read(2**20):
            if b'\\"' in last + block:
                return True
            last = block[-1:]
    return False


def misquoted(file: str, dialect: Dialect) -> str:
    """Returns the place of the first row with a field that begins with a quotation mark and does not end with one: readers
    continue after the next mark, in whatever row that is, and take all up to there for one field. Empty when there is none."""
    last_line = 0
    with opened(file) as content, fields_of_any_size():
        reader = dialect.reader((line.decode("latin-1") for line in content), strict=True)
        try:
            for _ in reader:
                last_line = reader.line_num
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                return f"{file}, line {last_line + 1}: {NEVER_CLOSED}"
            if "expected after" in str(error):
                return f"{file}, line {last_line + 1}: a quoted field does not end at its closing quotation mark"
    return ""


NEVER_CLOSED = "unterminated quoted field"


def is_plain(file: str, dialect: Dialect) -> bool:
    """Whether the quotation marks of a tsv are part of its texts: one that opens a field is not at its end, too; or rows
    are complete without them, line by line, and with them are not. With another delimiter they never are."""
    if dialect.delimiter != "\t":
        return False
    with opened(file) as content:
        if not any(line.startswith(b'"') or b'\t"' in line for line in content):
            return False
    if misquoted(file, dialect):
        return True
    with opened(file) as content:
        tabs = [line.count(b"\t") for line in content if line.strip()]
    with opened(file) as content, fields_of_any_size():
        num_rows = sum(bool(row) for row in dialect.reader(line.decode("latin-1") for line in content))
    return num_rows < len(tabs) and len(set(tabs)) == 1


def opened(file: str) -> IO[bytes]:
    """The bytes of a file or URL, unpacked when its name says that they are packed. Raises UserError for pipes and devices."""
    if kind := irregular(file):
        raise UserError(Problem(f"could not be read: {file} is {kind}, not a file", "data.source"))
    content: IO[bytes] = fsspec.open(file, "rb", compression="infer").open()
    return _BoundedReader(content, file) if file.lower().endswith(COMPRESSIONS) else content


class _BoundedReader(io.BufferedReader):
    """Reads a packed file. Raises UserError for a line, or a document that is read whole, of more than MAX_LINE_BYTES."""

    def __init__(self, content: Any, file: str) -> None:
        super().__init__(content)
        self._file = file
        self._line_bytes = 0  # since the last line break

    def readline(self, size: int | None = -1) -> bytes:
        return self._checked(super().readline(MAX_LINE_BYTES + 1 if size is None or size < 0 else size))

    def __next__(self) -> bytes:
        if line := self.readline():
            return line
        raise StopIteration

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(MAX_LINE_BYTES + 1 if size is None or size < 0 else size))

    def read1(self, size: int = -1) -> bytes:
        return self._checked(super().read1(size))

    def _checked(self, data: bytes) -> bytes:
        _, line_break, last = data.rpartition(b"\n")
        self._line_bytes = len(last) if line_break else self._line_bytes + len(last)
        if max(self._line_bytes, len(data)) > MAX_LINE_BYTES:
            message = (
                f"could not be read: {self._file} has a line, or a document, of more than {MAX_LINE_BYTES:,} bytes"
            )
            raise UserError(Problem(message, "data.source", hint="write one row a line, or unpack the file"))
        return data


@contextmanager
def fields_of_any_size() -> Iterator[None]:
    """`csv` refuses fields of more than 128 KiB, which pandas reads."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
