"""Tasks, by an explicit table: adding one is a file, a line here, a recipe and a test."""

from __future__ import annotations

from importlib import import_module

from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import Task

TASKS = {
    "text-classification": "sft_dist.tasks.text_classification:TextClassification",
}


def task_of(recipe: Recipe) -> Task:
    module, name = TASKS[recipe.task.type].split(":")
    return getattr(import_module(module), name)(recipe)
