"""How long examples are, how many are cut, what of them is left to learn from."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sft_dist.quality.findings import Finding, RowIndex, make_finding, rows_text, share_text

MAX_TRUNCATED_SHARE = 0.05  # share of a split's examples that are truncated
OUTLIER_FACTOR = 20.0  # times the median length


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


def check_truncation(row_index: RowIndex, truncated: np.ndarray, longest: int, max_length: int) -> list[Finding]:
    """truncated: (examples,) bool. One finding for each split of which more than MAX_TRUNCATED_SHARE is cut, at `longest` tokens:
    `max_length` of the recipe, or fewer where the model has a limit of its own."""
    advice = ""
    if longest < max_length:
        advice = f"{longest} tokens are the model's limit, so data.max_length has no effect: shorten the texts, or take another model"
    findings = []
    for split in row_index.splits:
        of_split = row_index.indices_of(split)
        cut = of_split[truncated[of_split]]
        if len(cut) > MAX_TRUNCATED_SHARE * len(of_split):
            message = f"{share_text(len(cut), len(of_split))} of {split} are cut at {longest} tokens"
            finding = make_finding("truncation", message, row_index.row_ids(cut), share=len(cut) / len(of_split))
            findings.append(replace(finding, advice=advice))
    return findings


def check_positions(row_index: RowIndex, lengths: np.ndarray, positions: int, virtual: int) -> list[Finding]:
    """lengths: (examples,) tokens; `virtual`: positions that the tuning takes up."""
    overlong = np.flatnonzero(lengths > positions - virtual)
    if not len(overlong):
        return []
    taken = f", {virtual} of them taken by tuning.virtual_tokens" if virtual else ""
    message = f"the model has {positions} positions{taken}: {rows_text(len(overlong))} of up to {lengths.max()} tokens do not fit; data.max_length: {positions - virtual}"
    return [make_finding("too-long-for-model", message, row_index.row_ids(overlong))]


def check_token_ids(row_index: RowIndex, largest: np.ndarray, num_embeddings: int) -> list[Finding]:
    """largest: (examples,) the largest token id of each."""
    outside = np.flatnonzero(largest >= num_embeddings)
    if not len(outside):
        return []
    message = f"the model has embeddings of tokens 0 to {num_embeddings - 1}, and {rows_text(len(outside))} have tokens up to {largest.max()}"
    return [make_finding("token-without-embedding", message, row_index.row_ids(outside))]


def check_masked_labels(row_index: RowIndex, weights: np.ndarray) -> list[Finding]:
    """weights: (examples,) or (examples, parts), what each adds to the loss; all zero: every label is masked."""
    empty = np.flatnonzero((weights.reshape(len(weights), -1) <= 0).all(axis=1))
    if not len(empty):
        return []
    return [
        make_finding(
            "zero-label", f"every label is masked: {share_text(len(empty), len(weights))}", row_index.row_ids(empty)
        )
    ]


def check_outliers(row_index: RowIndex, role: str, lengths: np.ndarray) -> list[Finding]:
    """lengths: (rows,) characters. Those of more than FAR times the median of all splits."""
    filled = lengths[lengths > 0]
    if len(filled) < 20:
        return []
    median = float(np.median(filled))
    far = np.flatnonzero(lengths > OUTLIER_FACTOR * max(median, 10.0))
    if not len(far):
        return []
    message = f"{role} of {rows_text(len(far))} is over {OUTLIER_FACTOR:.0f} times as long as the median of {median:,.0f} characters"
    return [make_finding("outlier-length", message, row_index.row_ids(far), longest=int(lengths.max()))]


@dataclass(frozen=True)
class TextFacts:
    """What is kept of all texts of a role."""

    lengths: np.ndarray  # (rows,) characters
    empty: list[int]  # rows
    strange: list[int]  # rows with U+FFFD
    first: str
    num_equal: int  # rows that have just the first text


def text_facts(texts: Iterable[str]) -> TextFacts:
    """Goes through them once; none is kept but the first."""
    sizes, empty, strange, first, num_equal = array("q"), [], [], "", 0
    for index, text in enumerate(texts):
        first = text if index == 0 else first
        num_equal += text == first
        sizes.append(len(text))
        if not text.strip():
            empty.append(index)
        if "\ufffd" in text:
            strange.append(index)
    return TextFacts(np.array(sizes, dtype=np.int64), empty, strange, first, num_equal)


def check_texts(row_index: RowIndex, role: str, facts: TextFacts, is_target: bool) -> list[Finding]:
    """Empty ones, and ones that were decoded wrongly."""
    findings = []
    if facts.empty:
        kind = "empty-target" if is_target else "empty-text"
        findings.append(
            make_finding(kind, f"{role} is empty in {rows_text(len(facts.empty))}", row_index.row_ids(facts.empty))
        )
    if facts.strange:
        message = f"{role} has U+FFFD, the sign for an unreadable character, in {rows_text(len(facts.strange))}"
        findings.append(make_finding("replacement-characters", message, row_index.row_ids(facts.strange)))
    return findings


def check_target_copies(row_index: RowIndex, sources: Iterable[str], targets: Iterable[str]) -> list[Finding]:
    """Targets that only repeat their source."""
    copies = [
        index
        for index, (source, target) in enumerate(zip(sources, targets, strict=True))
        if source.strip() and source.strip() == target.strip()
    ]
    if not copies:
        return []
    return [
        make_finding(
            "source-equals-target",
            f"the target repeats the source in {rows_text(len(copies))}",
            row_index.row_ids(copies),
        )
    ]


def check_constants(columns: Mapping[str, tuple[object, int]], rows: int) -> list[Finding]:
    """columns: role -> (its first value, how many rows have just that)."""
    constant = [role for role, (_, num_equal) in columns.items() if num_equal == rows > 1]
    return [
        make_finding("constant-column", f"{role} is {str(columns[role][0])[:60]!r} in all {rows_text(rows)}", role=role)
        for role in constant
    ]
