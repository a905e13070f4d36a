"""Scores of the best checkpoint on slices of a split, from its leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.report.values import is_number, list_in, mapping_in, number_in

MAX_SLICES = 200  # of a split; a column has at most 50
MAX_CHARS = 80


def slices_in(winner: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Returns split -> its slices, the worst first: those worse than the rest, then others by their p-value, then those too small."""
    by_split = {split: list_in(entries)[:MAX_SLICES] for split, entries in mapping_in(winner.get("slices")).items()}
    slices = {
        split: [_slice(entry) for entry in entries if isinstance(entry, dict)] for split, entries in by_split.items()
    }
    return {split: sorted(entries, key=_order) for split, entries in slices.items() if entries}


def _slice(entry: Mapping[str, Any]) -> dict[str, Any]:
    ends = entry.get("interval")
    is_interval = isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))
    return {
        "by": str(entry.get("by"))[:MAX_CHARS],
        "slice": str(entry.get("slice"))[:MAX_CHARS],
        "examples": number_in(entry.get("examples")),
        "score": number_in(entry.get("score")),
        "interval": ends if is_interval else None,
        "p_value": number_in(entry.get("p_value")),
        "worse": entry.get("worse") is True,
    }


def _order(entry: Mapping[str, Any]) -> tuple[bool, float]:
    p = entry["p_value"]
    return p is None, 0.0 if p is None else p
