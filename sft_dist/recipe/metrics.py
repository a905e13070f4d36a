"""Metrics by which a checkpoint can be chosen: the task's own, and those that other installed packages provide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sft_dist.recipe.entry_points import (
    METRICS_GROUP,
    TASKS_GROUP,
    Plugin,
    installed_names,
    invalid,
    load_object,
    plugin_of,
)
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks import TASKS


@dataclass(frozen=True)
class Metric:
    """A metric that a package provides through an entry point of its name in the group `sft_dist.metrics`."""

    name: str
    better: Literal["max", "min"]
    # (predictions, references) of a whole split, one of each per example, in the form that docs/plugins.md lists by task ->
    # the score; None where it is undefined.
    compute: Callable[[Sequence[Any], Sequence[Any]], float | None]
    tasks: tuple[str, ...] = ()  # types of the tasks that it can score; () for all


def installed_metric(recipe: Recipe) -> Metric | None:
    """Returns the metric of another package that the recipe names; None where the task has it. Raises UserError."""
    name = recipe.evaluate.metric
    if name is None or name in recipe.task.kind.metrics or name not in installed_names(METRICS_GROUP):
        return None
    return _load(name)


@cache
def _load(name: str) -> Metric:
    metric = load_object(METRICS_GROUP, name)
    if not isinstance(metric, Metric):
        raise invalid(METRICS_GROUP, name, f"{metric!r} is not a sft_dist.recipe.metrics.Metric")
    if metric.name != name:
        raise invalid(METRICS_GROUP, name, f"its Metric is named {metric.name}; the two names must be equal")
    if name in {builtin for settings in TASKS.values() for kind in settings.kinds for builtin in kind.metrics}:
        raise invalid(METRICS_GROUP, name, "it is the name of a built-in metric; choose another name")
    if metric.better not in ("max", "min") or not callable(metric.compute):
        raise invalid(METRICS_GROUP, name, "`better` must be 'max' or 'min', and `compute` a function")
    return metric


def directions(recipe: Recipe) -> dict[str, Literal["max", "min"]]:
    """Returns which way is better for each score of the recipe; the first is the default to choose a checkpoint by."""
    metric = installed_metric(recipe)
    return {**recipe.task.kind.metrics, **({metric.name: metric.better} if metric else {})}


def selection_metric(recipe: Recipe) -> tuple[str, str]:
    """Returns the score by which a checkpoint is chosen, and which way is better."""
    better = directions(recipe)
    metric = recipe.evaluate.metric or next(iter(better))
    return metric, recipe.evaluate.direction or better[metric]


def plugins_of(recipe: Recipe) -> list[Plugin]:
    """Returns the task and the metric of other packages that the recipe uses. Raises UserError for those not usable."""
    tasks = [] if recipe.task.type in TASKS else [plugin_of(TASKS_GROUP, recipe.task.type)]
    metric = installed_metric(recipe)
    return [*tasks, *([plugin_of(METRICS_GROUP, metric.name)] if metric else [])]
