"""Where a file that could not be read is at fault. These go through whole files, so they are asked once reading has failed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from typing import IO

from sft_dist.data.formats.dialect import (
    DELIMITERS,
    NEVER_CLOSED,
    Dialect,
    dialect_of,
    fields_of_any_size,
    misquoted,
    opened,
)
from sft_dist.recipe.errors import Problem, UserError

MAX_COLUMNS = 10_000


def unreadable(fault: str, value: str | None = None, valid: tuple[str, ...] = (), hint: str = "") -> UserError:
    return UserError(Problem(f"could not be read: {fault}", "data.source", value=value, valid=valid, hint=hint))


def different_columns(file: str, columns: list[str], first_file: str, first_columns: list[str]) -> str:
    return f"{file} has the columns {', '.join(columns)}, but {first_file} has {', '.join(first_columns)}"


def require_few_columns(file: str, count: int) -> None:
    """Raises UserError for more columns than a table of examples has: each takes memory and time, whatever is in it."""
    if count > MAX_COLUMNS:
        hint = "is it transposed, or separated by another delimiter? Keep the columns that the recipe names"
        raise unreadable(f"{file} has {count:,} columns; at most {MAX_COLUMNS:,} are read", hint=hint)


def no_rows(names: list[str]) -> UserError:
    return UserError(Problem("the source has no rows", "data.source", value=", ".join(names)))


def fault_in(name: str, files: list[str]) -> str:
    """The first fault with its place, such as "a.csv, line 7: expected 3 fields, found 2"; empty when none is found.
    `name` is that of the format."""
    for file in files:
        try:
            if fault := _fault(name, file):
                return fault
        except (OSError, ValueError, EOFError) as error:
            return f"{file}: {error}"
    return ""


# What files of other formats begin with.
_SIGNATURES = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive or an Excel file",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"\x1f\x8b": "packed by gzip",
    b"BZh": "packed by bzip2",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF file",
    b"ARROW1": "an Arrow file",
    b"version https://git-lfs": "a pointer of Git LFS instead of the data (git lfs pull)",
    b"<!doctype": "a web page",
    b"<html": "a web page",
}


def other_format(name: str, file: str) -> str:
    """What a local file is instead of the format `name`, by its first bytes; empty where they do not tell."""
    if "://" in file or name in ("parquet", "arrow", "text"):
        return ""
    with opened(file) as content:
        start = content.read(32)
    kinds = (kind for signature, kind in _SIGNATURES.items() if start.lower().startswith(signature.lower()))
    return f"{file}: {kind}, not {name}" if (kind := next(kinds, "")) else ""


def _fault(name: str, file: str) -> str:
    with opened(file) as content:
        start = content.read(4)
    if not start:
        return f"{file}: the file is empty"
    if other := other_format(name, file):
        return other
    if name == "parquet":
        return "" if start == b"PAR1" else f"{file}: not a parquet file"
    if name == "arrow":
        return ""
    if fault := _not_utf8(file):
        return fault
    if name in DELIMITERS:
        with opened(file) as content:
            beginning = content.read(2**16)
        if b"\r" in beginning and b"\n" not in beginning:
            return f"{file}: its lines end with carriage returns alone (convert it: tr '\\r' '\\n')"
        dialect = dialect_of(file, name)
        return ragged(file, dialect) or ("" if dialect.quoting == csv.QUOTE_NONE else misquoted(file, dialect))
    return _bad_json(file) if name == "json" else ""


def ragged(file: str, dialect: Dialect) -> str:
    """The first row with more or fewer fields than the header has; empty lines are no rows."""
    last_line = 0
    with opened(file) as content, fields_of_any_size():
        reader = dialect.reader(_decoded(content), strict=True)
        try:
            header: list[str] = next((row for row in islice(reader, dialect.num_skipped, None) if row), [])
            last_line = reader.line_num
            for row in reader:
                if row and len(row) != len(header):
                    return f"{file}, line {last_line + 1}: expected {len(header)} fields, found {len(row)}"
                last_line = reader.line_num
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                return f"{file}, line {last_line + 1}: {NEVER_CLOSED}"
    return ""


def repeated_header(file: str, dialect: Dialect) -> str:
    """The place of the first row that is the header again; empty when there is none."""
    with opened(file) as content, fields_of_any_size():
        reader = dialect.reader(_decoded(content))
        rows = (([field.strip() for field in row], reader.line_num) for row in reader if row)
        header, _ = next(islice(rows, dialect.num_skipped, None))
        line = next((line for row, line in rows if row == header), None)
    return "" if line is None else f"{file}, line {line}: the row repeats the header"


def decoded(file: str, number: int, offset: int, line: bytes) -> str:
    """One line of a text file. Raises UserError with the place of the first byte that is not UTF-8; `number` counts from
    1, `offset` is that of the line's first byte."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        location = f"{file}, line {number}, byte {offset + error.start}"
        if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise unreadable(
                f"{location}: UTF-16 instead of UTF-8", file, hint="convert it: iconv -f utf-16 -t utf-8"
            ) from None
        message = f"{location}: 0x{line[error.start]:02x} is not UTF-8"
        raise unreadable(message, file, hint="convert it, from Latin-1 for example: iconv -f latin1 -t utf-8") from None


def _not_utf8(file: str) -> str:
    offset = 0
    with opened(file) as content:
        for number, line in enumerate(content, start=1):
            try:
                decoded(file, number, offset, line)
            except UserError as error:
                (problem,) = error.problems
                return f"{problem.message.removeprefix('could not be read: ')} ({problem.hint})"
            offset += len(line)
    return ""


def _bad_json(file: str) -> str:
    """Either one document, or one on each line: the first line tells."""
    with opened(file) as content:
        lines = _decoded(content)
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                content_of_line = json.loads(line)
            except RecursionError:
                return f"{file}, line {number}: nested too deeply"
            except json.JSONDecodeError as error:
                if number == 1 and error.pos >= len(line.rstrip()) and not _is_object(next(lines, "")):
                    break  # continues in the next line
                return f"{file}, line {number}: not JSON ({error.msg}, column {error.colno})"
            if not isinstance(content_of_line, dict) and not (number == 1 and isinstance(content_of_line, list)):
                return f"{file}, line {number}: expected an object with the columns as keys, found {line.strip()[:60]}"
        else:
            return ""
    with opened(file) as content:
        try:
            json.loads(content.read())
        except json.JSONDecodeError as error:
            return f"{file}, line {error.lineno}: not JSON ({error.msg}, column {error.colno})"
    return ""


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _decoded(content: IO[bytes]) -> Iterator[str]:
    return (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(content))
