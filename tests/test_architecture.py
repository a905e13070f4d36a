"""The shape of the project: who may import whom, and that every entry of a table leads somewhere."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from launch.expand import expand
from launch.strategies import STRATEGIES
from samples.fetch import SAMPLES
from sft_dist.engines import ENGINES
from sft_dist.recipe import schema, tasks
from sft_dist.recipe.load import read
from sft_dist.recipe.references import check_references
from sft_dist.tasks import TASKS
from sft_dist.tuning.optimizers import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1]


def test_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("target", TASKS.values())
def test_every_task_of_the_table_exists_and_keeps_the_protocol(target):
    from sft_dist.tasks.base import Task

    module, name = target.split(":")
    task = getattr(import_module(module), name)
    wanted = [member for member in vars(Task) if not member.startswith("_")]
    assert [member for member in wanted if not hasattr(task, member)] == []


def test_tables_agree_with_the_schema():
    assert set(TASKS) == set(tasks.TASK_COLUMNS)
    assert set(tasks.METRICS) == set(tasks.LOSSES)
    assert {*tasks.ONE_CLASS, *tasks.NO_CLASSES} <= set(tasks.LOSSES)
    assert set(tasks.AUGMENTED) <= set(tasks.TASK_COLUMNS)
    names = {schema.AdamW, schema.Adam, schema.Sgd, schema.Adafactor}
    assert set(OPTIMIZERS) == {one.model_fields["name"].annotation.__args__[0] for one in names}
    kinds = (schema.PlainStrategy, schema.ZeroStrategy, schema.Zero3Strategy, schema.Fsdp2Strategy)
    strategies = {name for one in kinds for name in get_args(one.model_fields["name"].annotation)} - {"auto"}
    assert set(STRATEGIES) == strategies
    assert set(ENGINES) == strategies


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_at_every_point_and_points_to_things_that_exist(path):
    runs = expand(read(path))
    assert len(runs) == {"lr-sweep": 6}.get(path.stem, 1)
    problems = [problem for run in runs for problem in check_references(run.recipe)]
    # Samples are fetched by the tests that train on them; here they have to be known.
    lacking = [problem.value or "" for problem in problems if (problem.value or "").startswith("sample:")]
    assert {text.removeprefix("sample:").split("/")[0] for text in lacking} <= set(SAMPLES)
    assert len(problems) == len(lacking), problems
