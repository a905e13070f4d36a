"""One finding of the data check, and the names of the rows it is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sft_dist.recipe.findings import KINDS, Severity

RowId = tuple[str, int]  # split, row number in its source

MOST_ROWS = 1000  # of one finding, in JSON; the count is always whole


@dataclass(frozen=True)
class Finding:
    kind: str  # a key of KINDS
    message: str
    rows: tuple[RowId, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)  # more to know, for `--json`
    count: int = 0  # rows, or whatever the message counts
    advice: str = ""  # where it is not that of the kind

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    @property
    def hint(self) -> str:
        return self.advice or KINDS[self.kind].hint

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "severity": self.severity,
            "message": self.message,
            "count": self.count,
            "rows": [{"split": split, "row": row} for split, row in self.rows[:MOST_ROWS]],
            "hint": self.hint,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class RowIndex:
    """Where each of many values stands: a split and a row of its source. Arrays, since there may be millions."""

    splits: tuple[str, ...]
    split: np.ndarray  # (values,) index into splits
    row: np.ndarray  # (values,) row number in the source

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: Any) -> RowId:
        return self.splits[int(self.split[index])], int(self.row[index])

    def row_ids(self, indices: Iterable[Any]) -> list[RowId]:
        return [self[index] for index in indices]

    def indices_of(self, split: str) -> np.ndarray:
        """Indices of a split's values."""
        return np.flatnonzero(self.split == self.splits.index(split))

    @staticmethod
    def from_ids(ids: Mapping[str, np.ndarray]) -> RowIndex:
        """Split -> row numbers, one split after another."""
        split = np.repeat(np.arange(len(ids), dtype=np.int8), [len(rows) for rows in ids.values()])
        return RowIndex(
            tuple(ids), split, np.concatenate([*ids.values(), np.array([], dtype=np.int64)]).astype(np.int64)
        )


def make_finding(kind: str, message: str, rows: Iterable[RowId] = (), **details: Any) -> Finding:
    row_ids = tuple(rows)
    return Finding(kind, message, row_ids, details, len(row_ids))


def rows_text(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def share_text(count: int, total: int) -> str:
    """`3 of 200 rows (1.5%)`"""
    return f"{count:,} of {rows_text(total)} ({100 * count / max(total, 1):.2g}%)"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then in the table's order."""
    position = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda finding: (finding.severity != "error", position[finding.kind]))
