"""How long examples are, how many are cut, what of them is left to learn from."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sft_dist.quality.findings import Finding, Places, found, rows_text, share_text

MUCH_CUT = 0.05  # share of a split's examples that are truncated
FAR = 20.0  # times the median length


def statistics(lengths: np.ndarray) -> dict[str, float]:
    """lengths: (examples,)"""
    if not len(lengths):
        return {}
    p50, p90, p99 = np.percentile(lengths, [50, 90, 99])
    return {
        "min": float(lengths.min()),
        "mean": float(lengths.mean()),
        "median": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(lengths.max()),
        "total": float(lengths.sum()),
    }


def look_at_truncation(places: Places, truncated: np.ndarray, longest: int) -> list[Finding]:
    """truncated: (examples,) bool. One finding for each split of which more than MUCH_CUT is cut."""
    findings = []
    for split in places.splits:
        of_split = places.of(split)
        cut = of_split[truncated[of_split]]
        if len(cut) > MUCH_CUT * len(of_split):
            message = f"{share_text(len(cut), len(of_split))} of {split} are cut at {longest} tokens"
            findings.append(found("truncation", message, places.named(cut), share=len(cut) / len(of_split)))
    return findings


def look_for_nothing_to_learn(places: Places, weights: np.ndarray) -> list[Finding]:
    """weights: (examples,) or (examples, parts), what each adds to the loss; all zero: every label is masked."""
    empty = np.flatnonzero((weights.reshape(len(weights), -1) <= 0).all(axis=1))
    if not len(empty):
        return []
    return [found("zero-label", f"every label is masked: {share_text(len(empty), len(weights))}", places.named(empty))]


def look_for_outliers(places: Places, role: str, lengths: np.ndarray) -> list[Finding]:
    """lengths: (rows,) characters. Those of more than FAR times the median of all splits."""
    filled = lengths[lengths > 0]
    if len(filled) < 20:
        return []
    median = float(np.median(filled))
    far = np.flatnonzero(lengths > FAR * max(median, 10.0))
    if not len(far):
        return []
    message = (
        f"{role} of {rows_text(len(far))} is over {FAR:.0f} times as long as the median of {median:,.0f} characters"
    )
    return [found("outlier-length", message, places.named(far), longest=int(lengths.max()))]


@dataclass(frozen=True)
class TextFacts:
    """What is kept of all texts of a role."""

    lengths: np.ndarray  # (rows,) characters
    empty: list[int]  # rows
    strange: list[int]  # rows with U+FFFD
    first: str
    same: int  # rows that have just the first text


def text_facts(texts: Iterable[str]) -> TextFacts:
    """Goes through them once; none is kept but the first."""
    sizes, empty, strange, first, same = array("q"), [], [], "", 0
    for index, text in enumerate(texts):
        first = text if index == 0 else first
        same += text == first
        sizes.append(len(text))
        if not text.strip():
            empty.append(index)
        if "\ufffd" in text:
            strange.append(index)
    return TextFacts(np.array(sizes, dtype=np.int64), empty, strange, first, same)


def look_at_texts(places: Places, role: str, facts: TextFacts, is_target: bool) -> list[Finding]:
    """Empty ones, and ones that were decoded wrongly."""
    findings = []
    if facts.empty:
        kind = "empty-target" if is_target else "empty-text"
        findings.append(found(kind, f"{role} is empty in {rows_text(len(facts.empty))}", places.named(facts.empty)))
    if facts.strange:
        message = f"{role} has U+FFFD, the sign for an unreadable character, in {rows_text(len(facts.strange))}"
        findings.append(found("replacement-characters", message, places.named(facts.strange)))
    return findings


def look_for_echoes(places: Places, sources: Iterable[str], targets: Iterable[str]) -> list[Finding]:
    """Targets that only repeat their source."""
    same = [
        index
        for index, (source, target) in enumerate(zip(sources, targets, strict=True))
        if source.strip() and source.strip() == target.strip()
    ]
    if not same:
        return []
    return [
        found("source-equals-target", f"the target repeats the source in {rows_text(len(same))}", places.named(same))
    ]


def look_for_constants(columns: Mapping[str, tuple[object, int]], rows: int) -> list[Finding]:
    """columns: role -> (its first value, how many rows have just that)."""
    constant = [role for role, (_, same) in columns.items() if same == rows > 1]
    return [
        found("constant-column", f"{role} is {str(columns[role][0])[:60]!r} in all {rows_text(rows)}", role=role)
        for role in constant
    ]
