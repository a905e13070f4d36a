"""What the data check has to say: as text for a terminal, and as JSON. The page is made from the same."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sft_dist.quality.estimate import Estimate
from sft_dist.quality.findings import MOST_ROWS, Finding, RowId, in_order
from sft_dist.recipe.units import format_duration

SHOWN_ROWS = 20
SHOWN_CLASSES = 8


@dataclass(frozen=True)
class Lengths:
    """Of one split's examples."""

    numbers: np.ndarray  # (examples,)
    truncated: int
    statistics: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    name: str  # of the recipe
    task: str
    rows: Mapping[str, int]  # split -> rows
    findings: Sequence[Finding]
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows
    classes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # split -> class -> how many
    class_unit: str = "rows"
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    length_unit: str = "tokens"
    longest: int | None = None  # where examples are cut
    estimate: Estimate | None = None
    notes: Sequence[str] = ()  # what was not looked at, and why
    excerpts: Mapping[RowId, str] = field(default_factory=dict)  # of rows that findings name
    allowed: Sequence[str] = ()  # kinds whose errors do not count

    @property
    def errors(self) -> list[Finding]:
        """Those that block."""
        return [
            finding for finding in self.findings if finding.severity == "error" and finding.kind not in self.allowed
        ]

    @property
    def is_incomplete(self) -> bool:
        """Whether a check crashed, so that nothing is known of what it looks for."""
        return any(finding.kind == "crashed-check" for finding in self.errors)

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "warning"]

    @property
    def summary(self) -> str:
        allowed = len(self.findings) - len(self.errors) - len(self.warnings)
        parts = [_number(len(self.errors), "error"), _number(len(self.warnings), "warning")]
        return ", ".join(parts + ([f"{allowed} allowed"] if allowed else []))


def to_json(report: Report) -> dict[str, Any]:
    return {
        "recipe": report.name,
        "task": report.task,
        "ok": not report.errors,
        "errors": len(report.errors),
        "warnings": len(report.warnings),
        "allowed": list(report.allowed),
        "rows": dict(report.rows),
        "dropped": {reason: count for reason, count in report.dropped.items() if count},
        "findings": [
            {**finding.to_json(), "allowed": finding.severity == "error" and finding.kind in report.allowed}
            for finding in in_order(report.findings)
        ],
        "classes": {split: dict(classes) for split, classes in report.classes.items()},
        "lengths": {
            split: {**finding.statistics, "truncated": finding.truncated} for split, finding in report.lengths.items()
        },
        "length_unit": report.length_unit,
        "longest": report.longest,
        "estimate": report.estimate.to_json() if report.estimate else None,
        "notes": list(report.notes),
    }


def to_text(report: Report, width: int = 100) -> str:
    """Findings last, so that they stand above the prompt; errors first among them."""
    splits = ", ".join(f"{count:,} {split}" for split, count in report.rows.items())
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items() if count)
    lines = [
        f"{report.name} ({report.task})",
        _field("rows", splits + (f"; dropped {dropped}" if dropped else ""), width),
    ]
    for split, classes in report.classes.items():
        lines.append(
            _field("classes" if split == next(iter(report.classes)) else "", f"{split}: {_classes(classes)}", width)
        )
    for split, of_split in report.lengths.items():
        s = of_split.statistics
        cut = f", {of_split.truncated:,} cut at {report.longest}" if of_split.truncated else ""
        median, p90, longest = (_length(s[name], report.length_unit) for name in ("median", "p90", "max"))
        text = f"{split}: median {median}, 90% up to {p90}, longest {longest} {report.length_unit}{cut}"
        lines.append(_field("lengths" if split == next(iter(report.lengths)) else "", text, width))
    if report.estimate:
        lines.append(_field("steps", steps_text(report.estimate), width))
    lines += [_field("note", note, width) for note in report.notes]
    for finding in in_order(report.findings):
        label = "allowed" if finding.severity == "error" and finding.kind in report.allowed else finding.severity
        lines += ["", _field(label, f"{finding.kind}: {finding.message}", width)]
        if finding.rows:
            lines.append(_field("", rows_line(finding), width))
        lines.append(_field("", finding.hint, width))
    return "\n".join([*lines, "", report.summary])


def steps_text(estimate: Estimate) -> str:
    time = (
        f"about {format_duration(estimate.seconds)} ({estimate.source})"
        if estimate.seconds is not None
        else f"time {estimate.source}"
    )
    epoch = f" ({estimate.steps_per_epoch:,} an epoch)" if estimate.steps_per_epoch is not None else ""
    return f"{estimate.steps:,}{epoch}, {time}"


def rows_line(finding: Finding) -> str:
    """`train 3, 17; test 5`"""
    by_split: dict[str, list[str]] = {}
    for split, row in finding.rows[:SHOWN_ROWS]:
        by_split.setdefault(split, []).append(str(row))
    text = "; ".join(f"{split} {', '.join(rows)}" for split, rows in by_split.items())
    num_hidden = finding.count - min(len(finding.rows), SHOWN_ROWS)
    return text + (
        f" and {num_hidden:,} more{' (--json names them)' if finding.count <= MOST_ROWS else ''}"
        if num_hidden > 0
        else ""
    )


def _length(number: float, unit: str) -> str:
    return f"{number:,.2f}" if unit == "seconds" else f"{number:,.0f}"


def _classes(classes: Mapping[str, int]) -> str:
    total = sum(classes.values())
    ordered = sorted(classes.items(), key=lambda item: -item[1])
    listed = ", ".join(
        f"{name} {count:,} ({100 * count / max(total, 1):.0f}%)" for name, count in ordered[:SHOWN_CLASSES]
    )
    return listed + (f" and {len(ordered) - SHOWN_CLASSES} more" if len(ordered) > SHOWN_CLASSES else "")


def _field(name: str, text: str, width: int) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=f"{name:<10}",
        subsequent_indent=" " * 10,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
