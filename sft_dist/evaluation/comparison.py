"""What a leaderboard says about certainty: intervals, tests of every candidate against the winner, spread over seeds.

Everything comes from kept predictions (`predictions`), so nothing is scored again. A checkpoint without them, evaluated by an
earlier version, has no interval; `eval --force` makes them.
"""

from __future__ import annotations

import json
import logging
import statistics as plain_statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_dist.checkpoints.store import Checkpoint
from sft_dist.data.prepare import Prepared
from sft_dist.data.rows import Examples, Rows
from sft_dist.evaluation import class_report
from sft_dist.evaluation.example_scores import example_scores
from sft_dist.evaluation.inference import is_not_finite
from sft_dist.evaluation.leaderboard import Scored
from sft_dist.evaluation.predictions import SplitPredictions, predictions_file, read_predictions
from sft_dist.evaluation.reuse import evaluations_on_test, reuse_note
from sft_dist.evaluation.statistics import (
    ALPHA,
    ExampleScores,
    ExampleSums,
    holm,
    interval,
    p_value,
    smallest_difference,
    standard_error,
)
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_json
from sft_dist.recipe.metrics import directions
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from sft_dist.tasks.base import Task

log = logging.getLogger("sft_dist")
SEED = "train.seed"


@dataclass(frozen=True)
class Answers:
    """The kept predictions of a checkpoint on a split, with what they are scored by."""

    split: SplitPredictions
    task: Task
    loss: Any
    examples: Examples
    rows: Rows

    def scores(self) -> dict[str, ExampleScores]:
        """Returns nothing where a prediction is NaN or infinite: then no score is defined."""
        if any(map(is_not_finite, self.split.predictions)):
            return {}
        content = self.split
        parts = content.predictions, self.examples, content.groups, content.losses
        return example_scores(self.task, self.loss, *parts)

    def same_examples(self, second: Answers) -> bool:
        """Whether two checkpoints answered the same rows, so that their answers can be paired."""
        return self.split.rows_digest == second.split.rows_digest


@dataclass(frozen=True)
class Candidate:
    """What a checkpoint is compared by. Without its predictions: those of many checkpoints do not fit into memory."""

    scores: ExampleScores
    rows_digest: str


class AnswersReader:
    """Reads kept predictions. `prepared`: returns the data of a recipe (`Evaluator.prepared` has what it scored on)."""

    def __init__(self, prepared: Callable[[Recipe], Prepared]) -> None:
        self.prepared = prepared

    def read(self, entry: Scored, recipe: Recipe, split: str) -> Answers | None:
        """Returns None where predictions were not kept, or are of other rows than the data has now."""
        content = read_predictions(predictions_file(Checkpoint(entry.path, entry.step), split), entry.fingerprint)
        if content is None:
            return None
        data = self.prepared(recipe)
        examples = data.examples.get(split)
        if (
            examples is None
            or data.contents[split] != content.contents
            or not np.array_equal(examples.ids, content.rows)
        ):
            return None
        task = task_of(recipe)
        task.labels = data.task.labels
        return Answers(
            content, task, task.build_loss(data.examples.get("train", examples)), examples, data.splits[split]
        )


def with_statistics(
    board: dict[str, Any],
    ranking: list[Scored],
    recipes: Mapping[RunFolder, Recipe],
    reader: AnswersReader,
    num_trials: int = 0,  # means that were scored on the way to a greedy soup, and are no candidates
) -> dict[str, Any]:
    """Adds to what leaderboard.json holds: intervals and p-values of its rows, the smallest difference that validation shows, the
    winner's intervals on other splits, the spread over seeds, and every evaluation on test."""
    metric, winner = board["metric"], ranking[0]
    answers: dict[str, Answers] = {}
    try:
        candidates = [_candidate(reader, entry, recipes[entry.folder], metric) for entry in ranking]
        for split in (name for name in ("validation", "train", "test") if name in board["winner"]):
            if content := reader.read(winner, recipes[winner.folder], split):
                answers[split] = content
    except UserError as error:  # the data is gone or changed; recorded scores stand
        log.warning("no intervals and no comparisons: %s", error)
        candidates = [None] * len(ranking)
    rows = [{**row, **statistics} for row, statistics in zip(board["rows"], _of_rows(metric, candidates), strict=True)]
    final = {split: _intervals(content) for split, content in answers.items() if split != "validation"}
    evaluations = evaluations_on_test(list(recipes))
    return {
        **board,
        "rows": rows,
        "winner": {
            **board["winner"],
            "intervals": {"validation": rows[0]["intervals"], **final},
            **_class_report(board, winner, answers),
        },
        "smallest_difference": _smallest_differences(metric, candidates),
        "selection_note": selection_note(len(ranking) + num_trials),
        "seeds": seed_spread(board, ranking, candidates),
        "test_evaluations": evaluations,
        "test_note": reuse_note(evaluations),
    }


def _class_report(board: dict[str, Any], winner: Scored, answers: dict[str, Answers]) -> dict[str, Any]:
    """Calibration and scores of each class; writes the errors, which hold texts, beside the scores."""
    single_label = {split: content for split, content in answers.items() if class_report.is_single_label(content.task)}
    finite = {
        split: content
        for split, content in single_label.items()
        if np.isfinite(np.stack(content.split.predictions)).all()
    }
    if not finite:
        return {}
    targets = {split: np.array(content.task.references(content.examples)) for split, content in finite.items()}
    for split, content in finite.items():
        parts = content.split.predictions, targets[split], content.split.rows, content.rows
        file = winner.folder.errors_file(winner.step, split, winner.members)
        write_json(file, {"checkpoint": winner.fingerprint, **class_report.errors(content.task, *parts)})
    predictions = {split: content.split.predictions for split, content in finite.items()}
    return {
        "calibration": class_report.calibration(predictions, targets),
        "per_class": {
            split: class_report.per_class(board["winner"][split]["confusion_matrix"], board["labels"])
            for split in finite
            if board["winner"][split].get("confusion_matrix")
        },
    }


def _candidate(reader: AnswersReader, entry: Scored, recipe: Recipe, metric: str) -> Candidate | None:
    if entry.scores.get(metric) is None:
        return None
    answers = reader.read(entry, recipe, "validation")
    scores = answers and answers.scores().get(metric)
    return Candidate(scores, answers.split.rows_digest) if answers and scores else None


def _intervals(answers: Answers) -> dict[str, list[float]]:
    names = directions(answers.task.recipe)
    intervals = {name: interval(scores) for name, scores in answers.scores().items() if name in names}
    return {name: [*ends] for name, ends in intervals.items() if ends is not None}


def _of_rows(metric: str, candidates: list[Candidate | None]) -> list[dict[str, Any]]:
    """Intervals, Holm-adjusted p-values against the first, and whether the difference may be chance."""
    adjusted = holm([None, *(_p_value(candidates[0], candidate) for candidate in candidates[1:])])
    rows = []
    for candidate, p in zip(candidates, adjusted, strict=True):
        ends = interval(candidate.scores) if candidate else None
        is_close = p is not None and p > ALPHA
        rows.append({"intervals": {metric: [*ends]} if ends else {}, "p_value": p, "not_distinguishable": is_close})
    return rows


def _p_value(first: Candidate | None, second: Candidate | None) -> float | None:
    if first is None or second is None or first.rows_digest != second.rows_digest:
        return None
    return p_value(first.scores, second.scores)


def _smallest_differences(metric: str, candidates: list[Candidate | None]) -> dict[str, float]:
    """The median over the candidates' paired differences from the winner."""
    first = candidates[0]
    if first is None or not isinstance(first.scores, ExampleSums):
        return {}
    sizes = []
    for candidate in candidates[1:]:
        if candidate and isinstance(candidate.scores, ExampleSums) and first.rows_digest == candidate.rows_digest:
            sizes.append(smallest_difference(first.scores, candidate.scores))
    defined = [size for size in sizes if size]
    size = plain_statistics.median(defined) if defined else smallest_difference(first.scores)
    return {metric: size} if size else {}


def selection_note(num_candidates: int) -> str:
    if num_candidates < 2:
        return ""
    return (
        f"the winner's validation score is the best of {num_candidates}, which makes it optimistic; a test score is not"
    )


def seed_spread(
    board: dict[str, Any], ranking: list[Scored], candidates: list[Candidate | None]
) -> list[dict[str, Any]]:
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


def _error(candidate: Candidate | None) -> float | None:
    scores = candidate and candidate.scores
    return standard_error(scores) if isinstance(scores, ExampleSums) else None
