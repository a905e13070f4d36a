"""Scores of the winner and of the base model on the general tasks of a recipe (`evaluate.lm_eval`), which the run was not trained
for: whether fine-tuning cost what the base could do.

Both are recorded in the run folder with a value for each document, so that they can be compared as pairs, and are not scored again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft_dist.checkpoints.store import Checkpoint
from sft_dist.evaluation.evaluator import Evaluator
from sft_dist.evaluation.leaderboard import Scored
from sft_dist.evaluation.statistics import ExampleScores, ExampleSubsets, ratio, sums_of, units_of
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json, write_json, write_text
from sft_dist.recipe.machine import missing_packages
from sft_dist.recipe.schema import Recipe

log = logging.getLogger("sft_dist")

PREFIX = "lm_eval"
_MAX_SCORED = 100_000  # documents that are scored again in one test of a corpus score


@dataclass(frozen=True)
class GeneralSet:
    """What the winner and the base answered to the documents of a task, or of a group of tasks."""

    name: str  # lm_eval/TASK/METRIC
    better: str  # max | min
    winner: float
    base: float
    winner_scores: ExampleScores | None  # None where the score cannot be resampled
    base_scores: ExampleScores | None


def require_lm_eval(recipe: Recipe) -> None:
    """Raises UserError where the recipe has general tasks and lm-eval is not installed."""
    if problems := [problem for problem in missing_packages(recipe) if problem.path == "evaluate.lm_eval"]:
        raise UserError(problems)


class GeneralScores:
    """Scores the winner and the base on the recipe's general tasks, where they have no record yet."""

    def __init__(self, evaluator: Evaluator, recipe: Recipe, winner: Scored, force: bool) -> None:
        require_lm_eval(recipe)
        self._evaluator, self._recipe, self._winner, self._force = evaluator, recipe, winner, force
        self._harness: Any = None

    def records(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the records of the winner and of the base. Raises UserError for tasks that cannot be used, and where the two
        were asked different questions."""
        winner, folder = self._winner, self._winner.folder
        checkpoint = Checkpoint(winner.path, winner.step)
        first = self._record(
            folder.evaluation / f"{checkpoint.path.name}.{PREFIX}.json",
            winner.fingerprint,
            winner.name,
            lambda: self._scores(*self._evaluator.trained(self._recipe, checkpoint)),
        )
        second = self._record(folder.evaluation / f"base.{PREFIX}.json", "base", "the base model", self._base_scores)
        if any(task["documents"] != second["tasks"][name]["documents"] for name, task in first["tasks"].items()):
            raise UserError(
                f"evaluate.lm_eval: the tasks have changed since they were scored; sft-dist eval {folder.path} --force"
            )
        return first, second

    def _base_scores(self) -> dict[str, Any]:
        with self._evaluator.base(self._recipe, self._winner.folder) as (model, tokenizer):
            return self._scores(model, tokenizer)

    def _record(self, file: Path, fingerprint: str, model: str, score: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        settings = self._settings()
        key = {"checkpoint": fingerprint, "settings": settings}
        record = read_json(file)
        if not self._force and record and {name: record.get(name) for name in key} == key:
            return dict(record)
        log.info("%s  %s on %s of lm-eval", self._winner.folder.id, model, ", ".join(settings["tasks"]))
        scores = score()
        samples = scores.pop("samples")
        lines = [json.dumps(row, ensure_ascii=False) for row in samples]
        write_text(file.with_name(f"{file.stem}.samples.jsonl"), "".join(f"{line}\n" for line in lines))
        record = {**key, **scores}
        write_json(file, record)
        return record

    def _settings(self) -> dict[str, Any]:
        """What decides about scores, beside the tasks' own files and data."""
        from importlib.metadata import version  # slow to import, and only needed with such tasks

        assert self._recipe.evaluate.lm_eval is not None
        settings = self._recipe.evaluate.lm_eval.model_dump(mode="json", exclude={"allow_code"})
        return {**settings, "version": version("lm_eval"), "precision": self._recipe.train.precision}

    def _scores(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        if self._harness is None:
            self._harness = _harness(self._recipe)
        return dict(self._harness.evaluate(model, tokenizer))


def scores_of_model(recipe: Recipe, model: Any, tokenizer: Any) -> dict[str, float]:
    """Returns the scores of any model on the recipe's general tasks, if it has some. Raises UserError for tasks that cannot be used."""
    return {} if recipe.evaluate.lm_eval is None else all_scores(_harness(recipe).evaluate(model, tokenizer))


def _harness(recipe: Recipe) -> Any:
    # Imported late: it takes seconds, and few recipes need it.
    from sft_dist.evaluation.lm_harness import Harness

    return Harness(recipe)


def general_sets(winner: Mapping[str, Any], base: Mapping[str, Any]) -> list[GeneralSet]:
    """Pairs two records by what is tested as a whole."""
    return [_pair(name, members, winner["tasks"], base["tasks"]) for name, members in winner["sets"].items()]


def all_scores(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns every score of a record: of tasks and of groups, `lm_eval/TASK/METRIC`."""
    tasks = {name: {key: metric["score"] for key, metric in task["metrics"].items()} for name, task in record["tasks"].items()}  # fmt: skip
    scores = {**tasks, **record["groups"]}
    return {f"{PREFIX}/{name}/{key}": score for name, values in scores.items() for key, score in values.items()}


def _pair(name: str, members: list[list[str]], winner: Mapping[str, Any], base: Mapping[str, Any]) -> GeneralSet:
    pairs = [(winner[task]["metrics"][key], base[task]["metrics"][key]) for task, key in members]
    better = pairs[0][0]["better"]
    if len(pairs) == 1:
        first, second = pairs[0]
        return GeneralSet(
            f"{PREFIX}/{name}", better, first["score"], second["score"], document_scores(first), document_scores(second)
        )
    pooled = [{"aggregation": "mean", "values": [value for pair in pairs for value in pair[i]["values"]]} for i in (0, 1)]  # fmt: skip
    means = [float(np.mean(metric["values"])) for metric in pooled]
    return GeneralSet(f"{PREFIX}/{name}", better, means[0], means[1], *map(document_scores, pooled))


def document_scores(metric: Mapping[str, Any]) -> ExampleScores | None:
    """Returns what each document adds to a metric; None where its aggregation is not one that lm-eval names."""
    values, aggregation = metric["values"], metric["aggregation"]
    if aggregation == "mean" and all(isinstance(value, int | float) for value in values):
        rows = np.array([[float(value), 1.0] for value in values])
        return sums_of("rate" if set(rows[:, 0]) <= {0.0, 1.0} else "mean", rows, ratio)
    if aggregation is None:
        return None
    return ExampleSubsets(values, units_of(len(values), None), _aggregate(aggregation), _MAX_SCORED)


def _aggregate(name: str) -> Callable[[Any, np.ndarray], float | None]:
    # Imported late: it takes seconds, and few tasks need it.
    from lm_eval.api.registry import get_aggregation

    function = get_aggregation(name)

    def aggregate(values: list[Any], indices: np.ndarray) -> float | None:
        try:
            return float(function([values[index] for index in indices]))
        except (ValueError, ZeroDivisionError, ArithmeticError):  # on a subset that may lack a class
            return None

    return aggregate
