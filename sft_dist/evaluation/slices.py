"""Scores of the winner on slices of a split: rows with one value of a column (`evaluate.slices`), or of similar length.

Each slice is tested against the rest of its split (`statistics.worse_than_rest`), and the p-values of a split are corrected together by
Holm's method. Everything comes from kept predictions, so nothing is scored again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from sft_dist.data.prepare import Prepared
from sft_dist.data.rows import Rows
from sft_dist.data.slices import slice_columns
from sft_dist.evaluation.comparison import Answers, AnswersReader
from sft_dist.evaluation.example_scores import example_scores
from sft_dist.evaluation.inference import is_not_finite
from sft_dist.evaluation.leaderboard import Scored
from sft_dist.evaluation.statistics import (
    ALPHA,
    ExampleScores,
    ExampleSums,
    by_group,
    holm,
    interval,
    worse_than_rest,
)
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.metrics import selection_metric
from sft_dist.recipe.schema import Recipe

log = logging.getLogger("sft_dist")

MIN_UNITS = 30  # examples, or groups, of a slice and of its rest, below which nothing is claimed
_QUARTILES = (0.25, 0.5, 0.75)
_SPLITS = ("validation", "train", "test")


@dataclass(frozen=True)
class Division:
    """A way to divide a split."""

    by: str  # column, or `length (tokens)`
    names: list[str]  # of the slices, in order
    codes: np.ndarray  # (examples,) number of the slice of each example


def with_slices(board: dict[str, Any], winner: Scored, recipe: Recipe, reader: AnswersReader) -> dict[str, Any]:
    """Adds the scores of the winner's slices, by split, to what leaderboard.json holds."""
    splits = [split for split in _SPLITS if split in board["winner"]]
    try:
        by_split = {split: _of_split(winner, recipe, reader, split) for split in splits}
    except UserError as error:  # the data is gone or changed; recorded scores stand
        log.warning("no scores of slices: %s", error)
        by_split = {}
    slices = {split: entries for split, entries in by_split.items() if entries}
    return {**board, "winner": {**board["winner"], "slices": slices}}


def _of_split(winner: Scored, recipe: Recipe, reader: AnswersReader, split: str) -> list[dict[str, Any]]:
    answers = reader.read(winner, recipe, split)
    if answers is None or any(map(is_not_finite, answers.split.predictions)):
        return []
    return slice_scores(answers, divisions(reader.prepared(recipe), recipe, split), *selection_metric(recipe))


# ── how a split is divided ──────────────────────────────────────────────────────────────────────────────────────────
def divisions(data: Prepared, recipe: Recipe, split: str) -> list[Division]:
    """By the columns of the recipe, then by length where examples have one. Raises UserError."""
    row_ids = data.examples[split].ids
    columns = slice_columns(data, recipe)
    by_column = [_by_column(columns[split], column, row_ids) for column in recipe.evaluate.slices]
    return [*by_column, *_by_length(data, split)]


def _by_column(columns: Rows, name: str, row_ids: np.ndarray) -> Division:
    codes, names = columns.codes(name)
    order = np.argsort(names, kind="stable")
    return Division(name, [names[i] for i in order], np.argsort(order)[codes[_positions(columns, row_ids)]])


def _positions(rows: Rows, row_ids: np.ndarray) -> np.ndarray:
    """Where rows with these numbers are."""
    order = np.argsort(rows.ids, kind="stable")
    return order[np.searchsorted(rows.ids[order], row_ids)]


def _by_length(data: Prepared, split: str) -> Iterator[Division]:
    """Quartiles of the lengths on validation, so that splits have the same slices."""
    reference = "validation" if "validation" in data.splits else split
    unit, lengths = _lengths(data, split), _lengths(data, reference)
    if unit is None or lengths is None:
        return
    edges = length_edges(lengths[1])
    codes = np.searchsorted(edges, unit[1], side="left")
    if len(np.unique(codes)) > 1:
        yield Division(f"length ({unit[0]})", length_names(edges), codes)


def _lengths(data: Prepared, split: str) -> tuple[str, np.ndarray] | None:
    """The unit and the length of each example; None for tasks without lengths, such as those of images."""
    examples, rows = data.examples[split], data.splits[split]
    if "seconds" in rows.table.column_names:
        return "seconds", rows.numbers("seconds")[_positions(rows, examples.ids)]
    return ("tokens", examples.lengths) if data.task.counts_tokens else None


def length_edges(lengths: np.ndarray) -> np.ndarray:
    """Returns the quartiles, rounded to what names of slices show."""
    quartiles = np.quantile(lengths, _QUARTILES, method="inverted_cdf")
    is_whole = np.issubdtype(lengths.dtype, np.integer)
    return np.unique([float(edge) if is_whole else float(f"{edge:.3g}") for edge in quartiles])


def length_names(edges: np.ndarray) -> list[str]:
    texts = [f"{edge:,.0f}" if edge.is_integer() else f"{edge:g}" for edge in edges.tolist()]
    between = [f"over {low} to {high}" for low, high in pairwise(texts)]
    return [f"up to {texts[0]}", *between, f"over {texts[-1]}"]


# ── scores of slices ────────────────────────────────────────────────────────────────────────────────────────────────
def slice_scores(answers: Answers, ways: Sequence[Division], metric: str, direction: str) -> list[dict[str, Any]]:
    """Returns for each slice its number of examples, score and interval, the adjusted p-value of being worse than the rest (None
    where too few examples allow no claim), and whether it is."""
    content = answers.split
    parts = content.predictions, answers.examples, None, content.losses
    scores = example_scores(answers.task, answers.loss, *parts).get(metric)
    if scores is None:
        return []
    entries, p_values = [], []
    num_slices = sum(len(np.unique(way.codes)) for way in ways)
    for way in ways:
        for code in np.unique(way.codes):
            members = way.codes == code
            in_slice, complement = (
                restricted(scores, mask, content.groups, num_slices) for mask in (members, ~members)
            )
            is_claimed = min(in_slice.num_units, complement.num_units) >= MIN_UNITS
            p_values.append(worse_than_rest(in_slice, complement, direction) if is_claimed else None)
            entries.append(
                {"by": way.by, "slice": way.names[code], "examples": int(members.sum()), **_scored(in_slice)}
            )
    return [
        {**entry, "p_value": p, "worse": p is not None and p <= ALPHA}
        for entry, p in zip(entries, holm(p_values), strict=True)
    ]


def _scored(scores: ExampleScores) -> dict[str, Any]:
    value = scores.value
    ends = interval(scores)
    return {"score": value if math.isfinite(value) else None, "interval": [*ends] if ends else None}


def restricted(
    scores: ExampleScores, members: np.ndarray, groups: np.ndarray | None, num_slices: int = 1
) -> ExampleScores:
    """Returns the score of some examples, with groups as its units. What has to be computed again for each resample is resampled
    less often, so that all slices together take about as long as the whole split."""
    if isinstance(scores, ExampleSums):
        sums = replace(scores, codes=scores.codes[members])
        return by_group(sums, groups[members]) if groups is not None and members.any() else sums
    numbers = np.flatnonzero(members)
    units = [numbers[groups[members] == group] for group in np.unique(groups[members])] if groups is not None else []
    return replace(scores, units=units or list(numbers[:, None]), max_scored=scores.max_scored // (2 * num_slices))
