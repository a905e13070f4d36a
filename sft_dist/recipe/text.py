"""Texts for people, made the same way in the launcher and on the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def join_names(names: Iterable[object], limit: int = 8) -> str:
    """`a, b, c and 5 more`."""
    texts = list(map(str, names))
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit:,} more" if len(texts) > limit else "")


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)
