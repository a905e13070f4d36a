"""What a leaderboard says about certainty: intervals, tests of every candidate against the winner, spread over seeds.

Everything comes from kept predictions (`predictions`), so nothing is scored again. A checkpoint without them, evaluated by an
earlier version, has no interval; `eval --force` makes them.
"""

from __future__ import annotations

import json
import logging
import statistics as plain_statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_dist.checkpoints.store import Checkpoint
from sft_dist.data.prepare import Prepared, prepare
from sft_dist.data.rows import Examples
from sft_dist.evaluation.example_scores import example_scores
from sft_dist.evaluation.leaderboard import Scored
from sft_dist.evaluation.looks import looks_of, several_looks
from sft_dist.evaluation.predictions import SplitPredictions, predictions_file, read_predictions
from sft_dist.evaluation.statistics import (
    ALPHA,
    ExampleScores,
    ExampleSums,
    Interval,
    holm,
    interval,
    p_value,
    smallest_difference,
    standard_error,
)
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.metrics import directions
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from sft_dist.tasks.base import Task
from sft_dist.tasks.models import load_processor

log = logging.getLogger("sft_dist")
SEED = "train.seed"


@dataclass(frozen=True)
class Answers:
    """The kept predictions of a checkpoint on a split, with what they are scored by."""

    split: SplitPredictions
    task: Task
    loss: Any
    examples: Examples

    def scores(self) -> dict[str, ExampleScores]:
        return example_scores(self.task, self.loss, self.split.predictions, self.examples, self.split.groups)

    def same_examples(self, other: Answers) -> bool:
        """Whether two checkpoints answered the same rows, so that their answers can be paired."""
        return self.split.contents == other.split.contents and np.array_equal(self.split.rows, other.split.rows)


class AnswersReader:
    """Reads kept predictions. Data is prepared once for recipes that share it."""

    def __init__(self) -> None:
        self._data: dict[str, Prepared] = {}

    def read(self, folder: RunFolder, recipe: Recipe, step: int, fingerprint: str, split: str) -> Answers | None:
        """Returns None where predictions were not kept, or are of other rows than the data has now."""
        checkpoint = Checkpoint(folder.checkpoint(step), step)
        content = read_predictions(predictions_file(checkpoint, split), fingerprint)
        if content is None:
            return None
        data = self._prepared(recipe)
        examples = data.examples.get(split)
        if (
            examples is None
            or data.contents[split] != content.contents
            or not np.array_equal(examples.ids, content.rows)
        ):
            return None
        task = task_of(recipe)
        task.labels = data.task.labels
        return Answers(content, task, task.build_loss(data.examples.get("train", examples)), examples)

    def _prepared(self, recipe: Recipe) -> Prepared:
        key = recipe.model_dump_json(include={"task", "data", "model"})
        if key not in self._data:
            task = task_of(recipe)
            self._data[key] = prepare(recipe, task, load_processor(recipe, task))
        return self._data[key]


def with_statistics(
    board: dict[str, Any],
    ranking: list[Scored],
    recipes: Mapping[RunFolder, Recipe],
    reader: AnswersReader | None = None,
) -> dict[str, Any]:
    """Adds to what leaderboard.json holds: intervals and p-values of its rows, the smallest difference that validation shows, the
    winner's intervals on other splits, the spread over seeds, and every look at test."""
    reader = reader or AnswersReader()
    metric, winner = board["metric"], ranking[0]
    try:
        candidates = [_metric_scores(reader, entry, recipes[entry.folder], metric) for entry in ranking]
        final = {
            split: _intervals(
                reader.read(winner.folder, recipes[winner.folder], winner.step, winner.fingerprint, split)
            )
            for split in ("train", "test")
            if split in board["winner"]
        }
    except UserError as error:  # the data is gone or changed; recorded scores stand
        log.warning("no intervals and no comparisons: %s", error)
        candidates, final = [None] * len(ranking), {}
    rows = [{**row, **statistics} for row, statistics in zip(board["rows"], _of_rows(metric, candidates), strict=True)]
    looks = looks_of(list(recipes))
    return {
        **board,
        "rows": rows,
        "winner": {**board["winner"], "intervals": {"validation": rows[0]["intervals"], **final}},
        "smallest_difference": _smallest_differences(metric, candidates),
        "selection_note": selection_note(len(ranking)),
        "seeds": seed_spread(board, ranking, candidates),
        "test_looks": looks,
        "test_note": several_looks(looks),
    }


def _metric_scores(
    reader: AnswersReader, entry: Scored, recipe: Recipe, metric: str
) -> tuple[Answers, ExampleScores] | None:
    if entry.scores.get(metric) is None:
        return None
    answers = reader.read(entry.folder, recipe, entry.step, entry.fingerprint, "validation")
    scores = answers and answers.scores().get(metric)
    return (answers, scores) if answers and scores else None


def _intervals(answers: Answers | None) -> dict[str, Interval]:
    intervals = {name: interval(scores) for name, scores in answers.scores().items()} if answers else {}
    names = set(directions(answers.task.recipe)) if answers else set()
    return {name: ends for name, ends in intervals.items() if ends is not None and name in names}


Candidate = tuple[Answers, ExampleScores] | None


def _of_rows(metric: str, candidates: list[Candidate]) -> list[dict[str, Any]]:
    """Intervals, Holm-adjusted p-values against the first, and whether the difference may be chance."""
    adjusted = holm([None, *(_p_value(candidates[0], candidate) for candidate in candidates[1:])])
    rows = []
    for candidate, p in zip(candidates, adjusted, strict=True):
        ends = interval(candidate[1]) if candidate else None
        is_close = p is not None and p > ALPHA
        rows.append({"intervals": {metric: ends} if ends else {}, "p_value": p, "not_distinguishable": is_close})
    return rows


def _p_value(first: Candidate, second: Candidate) -> float | None:
    if first is None or second is None or not first[0].same_examples(second[0]):
        return None
    return p_value(first[1], second[1])


def _smallest_differences(metric: str, candidates: list[Candidate]) -> dict[str, float]:
    """The median over the candidates' paired differences from the winner."""
    first = candidates[0]
    if first is None or not isinstance(first[1], ExampleSums):
        return {}
    sizes = []
    for candidate in candidates[1:]:
        if candidate and isinstance(candidate[1], ExampleSums) and first[0].same_examples(candidate[0]):
            sizes.append(smallest_difference(first[1], candidate[1]))
    defined = [size for size in sizes if size]
    size = plain_statistics.median(defined) if defined else smallest_difference(first[1])
    return {metric: size} if size else {}


def selection_note(num_candidates: int) -> str:
    if num_candidates < 2:
        return ""
    return (
        f"the winner's validation score is the best of {num_candidates}, which makes it optimistic; a test score is not"
    )


def seed_spread(board: dict[str, Any], ranking: list[Scored], candidates: list[Candidate]) -> list[dict[str, Any]]:
    """For runs that differ in the seed alone: the standard deviation of their best scores, beside the standard error that one set
    of examples gives each of them, which knows nothing of seeds."""
    metric = board["metric"]
    best: dict[str, int] = {}
    for position, entry in enumerate(ranking):
        if entry.scores.get(metric) is not None:
            best.setdefault(entry.folder.id, position)
    families: dict[str, list[int]] = {}
    for run, position in best.items():
        settings = {key: value for key, value in board["differences"].get(run, {}).items() if key != SEED}
        families.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(position)
    spread = []
    for key, positions in families.items():
        if len(positions) < 2:
            continue
        scores = [ranking[position].scores[metric] for position in positions]
        errors = [_error(candidates[position]) for position in positions]
        defined = [error for error in errors if error is not None]
        spread.append(
            {
                "settings": json.loads(key),
                "runs": len(positions),
                "mean": plain_statistics.fmean(scores),
                "between_seed_sd": plain_statistics.stdev(scores),
                "within_set_error": plain_statistics.fmean(defined) if defined else None,
            }
        )
    return spread


def _error(candidate: Candidate) -> float | None:
    return standard_error(candidate[1]) if candidate and isinstance(candidate[1], ExampleSums) else None
