"""Rows that are there twice: the same input, nearly the same input, the same input with another label; in one split, or in
two, where they make a score look better than it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sft_dist.data.clean import near_duplicates
from sft_dist.quality.findings import MOST_ROWS, Finding, RowId, RowIndex, make_finding, rows_text
from sft_dist.recipe.schema import SPLITS

SIMILARITY = 0.8  # Jaccard similarity of five-character shingles
MAX_NEAR_TEXTS = 200_000  # texts that near-duplicates are looked for in


def digest(value: str | bytes) -> int:
    """64 bits of the value's hash."""
    import xxhash

    return xxhash.xxh3_64_intdigest(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value)


def check_repeats(
    row_index: RowIndex,
    inputs: np.ndarray,  # (rows,) uint64 digests of the inputs
    targets: np.ndarray,  # (rows,) uint64 digests of what is learned from them
    one_each: bool,  # an input has one right target: not so where several references are given for a source
) -> list[Finding]:
    """Copies that differ in their label, wherever they are, are conflicts, and named as such only; the others are duplicates
    where input and target repeat an earlier row of their split."""
    duplicates: list[tuple[RowId, RowId]] = []
    conflicts: list[RowId] = []
    for group in equal_groups(inputs):
        alike = [group[targets[group] == target] for target in np.unique(targets[group])]
        if one_each and len(alike) > 1:
            conflicts += row_index.row_ids(group)
        else:
            duplicates += [pair for copies in alike for pair in _repeats(row_index.row_ids(copies))]
    findings = _duplicates("duplicate", "repeat an earlier one", duplicates)
    if conflicts:
        message = f"the same input with different labels: {rows_text(len(conflicts))}"
        findings.append(make_finding("conflicting-labels", message, conflicts))
    return findings


def check_leaks(row_index: RowIndex, inputs: np.ndarray) -> list[Finding]:
    """inputs: (rows,) uint64 digests. All rows with the same input in more than one split."""
    groups = [row_index.row_ids(group) for group in equal_groups(inputs)]
    across = [name for names in groups if len({split for split, _ in names}) > 1 for name in names]
    return _leaks("leak", "the same input", across)


def check_near_copies(
    row_index: RowIndex,
    texts_at: Callable[[np.ndarray], Sequence[str]],  # sorted indices -> their texts
    step: Callable[[int], None] | None = None,
    threshold: float = SIMILARITY,
) -> list[Finding]:
    """Near-duplicates that are not exact copies. Beyond MOST_NEAR texts a sample is looked at, as many of each split as
    there is room for, the small splits whole; the others are not read."""
    sample = sample_by_split(row_index, MAX_NEAR_TEXTS)
    texts = texts_at(sample)
    digests = np.array([digest(text) for text in texts], dtype=np.uint64)
    duplicates: list[tuple[RowId, RowId]] = []
    leaks: list[RowId] = []
    for group in near_duplicates(texts, threshold, step):
        _, first = np.unique(digests[group], return_index=True)  # exact copies are reported elsewhere
        names = row_index.row_ids(sample[group[np.sort(first)]])
        if len({split for split, _ in names}) > 1:
            leaks += names
        duplicates += _repeats(names)
    return [
        *_duplicates("near-duplicate", "nearly repeat an earlier one", duplicates),
        *_leaks("near-leak", "nearly the same input", leaks),
    ]


def equal_groups(digests: np.ndarray) -> list[np.ndarray]:
    """Indices of equal digests, groups of two and more, the group with the smallest index first. digests: (rows,)"""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    groups = [group for group in np.split(order, cuts) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))


def sample_by_split(row_index: RowIndex, limit: int) -> np.ndarray:
    """At most `most` sorted indices: every split gets an equal share, and what small ones leave goes to the large."""
    by_size, room = sorted((row_index.indices_of(split) for split in row_index.splits), key=len), limit
    samples: list[np.ndarray] = []
    for number, indices in enumerate(by_size):
        share = room // (len(by_size) - number)
        if len(indices) > share:
            indices = np.random.default_rng(0).choice(indices, share, replace=False)
        room -= len(indices)
        samples.append(indices)
    return np.sort(np.concatenate(samples)) if samples else np.array([], dtype=np.int64)


def _repeats(names: Sequence[RowId]) -> list[tuple[RowId, RowId]]:
    """(copy, the first of it in the same split)"""
    first: dict[str, RowId] = {}
    return [(name, first[name[0]]) for name in names if first.setdefault(name[0], name) != name]


def _duplicates(kind: str, message: str, pairs: Sequence[tuple[RowId, RowId]]) -> list[Finding]:
    if not pairs:
        return []
    ordered = sorted(pairs, key=lambda pair: _order(pair[0]))
    first = [list(of) for _, of in ordered[:MOST_ROWS]]
    return [make_finding(kind, f"{rows_text(len(pairs))} {message}", [copy for copy, _ in ordered], repeats=first)]


def _leaks(kind: str, message: str, rows: Sequence[RowId]) -> list[Finding]:
    if not rows:
        return []
    ordered = sorted(rows, key=_order)
    *first, last = dict.fromkeys(split for split, _ in ordered)
    return [make_finding(kind, f"{message} in {', '.join(first)} and {last}: {rows_text(len(rows))}", ordered)]


def _order(row: RowId) -> tuple[int, str, int]:
    split, number = row
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), split, number
