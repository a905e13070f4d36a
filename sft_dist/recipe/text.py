"""Texts for people, made the same way in the launcher and on the nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Escape sequences begin with these, and can hide text or write to the clipboard. The last ones reorder what is read.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Returns the text with control characters of terminals made visible, but for tabs, newlines and carriage returns."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def join_names(names: Iterable[object], limit: int = 8) -> str:
    """`a, b, c and 5 more`."""
    texts = list(map(str, names))
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit:,} more" if len(texts) > limit else "")


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)
