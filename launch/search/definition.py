"""What is searched: the recipe with its `search` section, the space, the objective, and where the study lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from launch.report.curves import read_metrics
from launch.search.folder import search_folder
from launch.search.space import Space, read_space, run_of
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.explain import problems_from
from sft_dist.recipe.load import read
from sft_dist.recipe.metrics import directions, selection_metric
from sft_dist.recipe.schema import Recipe, Search
from sft_dist.recipe.source import Source
from sft_dist.recipe.suggest import similar_to
from sft_dist.run.folder import RunFolder

EXAMPLE = "such as search: {space: {train.lr: {log: [1e-6, 1e-3]}}, budget: {trials: 20}}"


@dataclass(frozen=True)
class Objective:
    """The score on validation that is optimized."""

    metric: str
    maximize: bool

    def scores(self, run: Path) -> dict[int, float]:
        """Returns step -> best score so far, for each validation in which the metric was defined."""
        best: dict[int, float] = {}
        for line in read_metrics(RunFolder(run).metrics_file):
            score = line.get(self.metric)
            if line["kind"] == "validation" and isinstance(score, int | float) and math.isfinite(score):
                before = best.get(max(best)) if best else None
                best[line["step"]] = score if before is None or self.is_better(score, before) else before
        return best

    def is_better(self, score: float, reference: float) -> bool:
        return score > reference if self.maximize else score < reference


@dataclass(frozen=True)
class Definition:
    """A search as its recipe describes it."""

    source: Source
    search: Search
    space: Space
    objective: Objective
    runs: Path  # folder of the recipe's runs
    folder: Path  # of the search itself


def read_definition(target: str, overrides: Sequence[str], root: Path) -> Definition:
    """Reads a recipe with a search. Raises UserError with every problem."""
    source = read(target, overrides)
    if not source.data.get("search"):
        raise UserError(Problem(f"{target} has no `search` section", "search", hint=EXAMPLE))
    if source.data.get("matrix"):
        mark = source.mark(("matrix",))
        hint = "write its values into search.space, with `sampler: grid` to try all of them"
        raise UserError(Problem("a recipe has a matrix or a search, not both", "matrix", mark=mark, hint=hint))
    search = _section(source)
    space = read_space(source, search)
    recipe = run_of(source, next(space.corners()), schema_only=True).recipe
    runs = root / recipe.name
    return Definition(source, search, space, _objective(source, search, recipe), runs, search_folder(source, runs))


def _section(source: Source) -> Search:
    """Returns the section alone: what the rest of the recipe lacks may be in the space. Raises UserError."""
    try:
        Recipe.model_validate(source.data)
    except ValidationError as error:
        problems = [problem for problem in problems_from(error, source) if problem.path.startswith("search")]
        if problems:
            raise UserError(problems) from None
    search = Search.model_validate(source.data["search"])
    if search.sampler == "gp" and search.pruning.name == "asha":
        mark = source.mark(("search", "sampler"))
        message = "a Gaussian process learns from finished trials alone, and asha finishes few"
        raise UserError(Problem(message, "search.sampler", mark=mark, value="gp", hint="use sampler: tpe"))
    return search


def _objective(source: Source, search: Search, recipe: Recipe) -> Objective:
    if search.metric is None:
        metric, direction = selection_metric(recipe)
        return Objective(metric, (search.direction or direction) == "max")
    valid = {**directions(recipe), "loss": "min"}
    if search.metric not in valid:
        mark = source.mark(("search", "metric"))
        hint = similar_to(search.metric, valid)
        raise UserError(
            Problem("no such metric", "search.metric", mark, value=search.metric, valid=tuple(valid), hint=hint)
        )
    return Objective(search.metric, (search.direction or valid[search.metric]) == "max")
