"""The work of each task: a module here reads, encodes, trains and scores by the settings in `sft_dist/recipe/tasks/`."""

from __future__ import annotations

from importlib import import_module

from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import Task


def task_of(recipe: Recipe) -> Task:
    """Imports and makes the work class that the recipe's task names."""
    module, name = recipe.task.work.split(":")
    return getattr(import_module(module), name)(recipe)
