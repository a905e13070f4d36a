"""Hints for the user: the word or file that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def similar_to(word: str, names: Iterable[str]) -> str:
    """Returns `did you mean ...?`, or nothing. Ignores case."""
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.lower(), name)
    close = get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"did you mean `{by_lower[close[0]]}`?" if close else ""


def neighbours_of(path: Path) -> str:
    """Returns a hint about the files beside a path that does not exist."""
    parent = path.parent
    try:
        if not parent.is_dir():
            return f"there is no folder {parent}"
        names = sorted(entry.name for entry in parent.iterdir())[:5000]
    except OSError:
        return ""
    return similar_to(path.name, names)
