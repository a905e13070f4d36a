"""Builds the report of a data check from its subject and its findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_dist.data.rows import ROW
from sft_dist.quality import lengths
from sft_dist.quality.estimate import earlier_rate, estimate
from sft_dist.quality.findings import Finding, RowId
from sft_dist.quality.probe import measured_rate
from sft_dist.quality.report import SHOWN_ROWS, Lengths, Report
from sft_dist.quality.subject import BATCH, EXCERPT, Say, Subject, count_classes, max_tokens
from sft_dist.tasks.base import Task


def build_report(subject: Subject, findings: Sequence[Finding], runs: Path | None, timed: bool, say: Say) -> Report:
    counts, _, unit = count_classes(subject)
    numbers, length_unit = _lengths(subject)
    train = subject.examples.get("train")
    steps_estimate = None
    if subject.prepared is not None:
        rate = None
        if timed and train is not None:
            say("timing a few steps")
            rate = measured_rate(subject.recipe, subject.task, subject.processor, train)
        if rate is None and runs is not None:
            rate = earlier_rate(subject.recipe, runs)
        tokens = train.lengths if train is not None and subject.task.counts_tokens else None
        rows = len(train) if train is not None else len(subject.rows["train"])
        steps_estimate = estimate(subject.recipe, tokens, rows, rate)
    return Report(
        name=subject.recipe.name,
        task=subject.recipe.task.type,
        rows={split: len(rows) for split, rows in subject.rows.items()},
        findings=tuple(findings),
        dropped=subject.prepared.dropped if subject.prepared else {},
        classes=counts,
        class_unit=unit,
        lengths={split: of_split for split, of_split in numbers.items() if of_split.statistics},
        length_unit=length_unit,
        longest=max_tokens(subject) if length_unit == "tokens" else None,
        estimate=steps_estimate,
        notes=tuple(subject.notes),
        excerpts=_excerpts(subject, findings),
    )


def _lengths(subject: Subject) -> tuple[dict[str, Lengths], str]:
    """Returns lengths in tokens, seconds or, where nothing could be encoded, characters."""
    if subject.examples and subject.task.counts_tokens:
        return {
            split: Lengths(encoded.lengths, encoded.num_truncated, lengths.statistics(encoded.lengths))
            for split, encoded in subject.examples.items()
        }, "tokens"
    if subject.task.counts_tokens and (token_counts := subject.input_tokens()):
        return {split: Lengths(sizes, 0, lengths.statistics(sizes)) for split, sizes in token_counts.items()}, "tokens"
    if subject.has("seconds"):
        by_split = {split: rows.numbers("seconds") for split, rows in subject.rows.items()}
        return {
            split: Lengths(sizes_of_split, 0, lengths.statistics(sizes_of_split))
            for split, sizes_of_split in by_split.items()
        }, "seconds"
    row_index = subject.row_index
    if not len(row_index) or not subject.reads_texts:
        return {}, ""
    parts = np.split(np.arange(len(row_index)), range(BATCH, len(row_index), BATCH))
    sizes = np.array([len(text) for indices in parts for text in subject.input_texts(indices)])
    by_split = {split: sizes[row_index.indices_of(split)] for split in subject.rows}
    return {
        split: Lengths(sizes_of_split, 0, lengths.statistics(sizes_of_split))
        for split, sizes_of_split in by_split.items()
    }, "characters"


def _excerpts(subject: Subject, findings: Sequence[Finding]) -> dict[RowId, str]:
    """Returns the text of the first rows of each finding."""
    row_ids = {
        row for finding in findings for row in finding.rows[: SHOWN_ROWS if finding.kind != "suspicious-label" else 100]
    }
    excerpts: dict[RowId, str] = {}
    tables = [(split, rows.table) for split, rows in subject.rows.items()]
    tables += [(split, table) for split, table in subject.source.tables.items()]
    for split, table in tables:
        ids = np.asarray(table.with_format("numpy")[ROW][:])
        rows = [row for of, row in row_ids if of == split and (of, row) not in excerpts]
        for index in np.flatnonzero(np.isin(ids, rows)):
            excerpts[(split, int(ids[index]))] = _excerpt(subject.task, table[int(index)])
    return excerpts


def _excerpt(task: Task, row: Mapping[str, Any]) -> str:
    texts, stored_texts, targets = [], task.stored_texts, task.unique_targets
    for role, value in row.items():
        if role in stored_texts:
            texts.append(stored_texts[role](value))
        elif isinstance(value, dict) and "path" in value:
            texts.append(str(value["path"] or ""))
        elif role in targets and value is not None:
            texts.append(f"[{', '.join(value) if isinstance(value, list) else value}]")
    excerpt = " | ".join(filter(None, texts))
    return excerpt if len(excerpt) <= EXCERPT else f"{excerpt[:EXCERPT]}…"
