"""A sealed run that goes on in another shape."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.expand import Run
from launch.plan import Machine, plan_run
from launch.planning import plan_run_folder
from launch.run_folders import create_run_folder
from sft_dist.engines import strategy_options
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder, run_id
from tests.launch.conftest import ROWS, make_recipe

HERE = Machine(0, 4)


def sealed(tmp_path: Path, recipe: Recipe) -> RunFolder:
    folder = tmp_path / "runs/demo" / run_id(recipe)
    return create_run_folder(plan_run(Run(folder.name, recipe, {}), HERE, ROWS, folder, "/venv/bin/python"), recipe)


def test_another_strategy_and_number_of_processes_are_planned_and_the_recipe_stays(tmp_path: Path) -> None:
    folder = sealed(tmp_path, make_recipe())
    before = folder.recipe_file.read_text()
    prepared = plan_run_folder(folder.path, processes=4, strategy="fsdp2", machine=HERE)
    assert prepared.plan.strategy["name"] == "fsdp2"
    assert prepared.plan.world_size == 4
    create_run_folder(prepared.plan, prepared.run.recipe)
    assert folder.recipe_file.read_text() == before
    assert strategy_options(folder.recipe(), folder)["name"] == "fsdp2"  # what the ranks will do


def test_without_a_plan_the_recipe_says_it_and_auto_is_the_whole_model(tmp_path: Path) -> None:
    nowhere = RunFolder(tmp_path)
    assert strategy_options(make_recipe(), nowhere) == {"name": "ddp"}
    options = strategy_options(make_recipe(train={"strategy": {"name": "zero2", "offload_optimizer": "cpu"}}), nowhere)
    assert options == {"name": "zero2", "offload_optimizer": "cpu"}


@pytest.mark.parametrize(
    ("strategy", "said"),
    [("fsdp", "did you mean `fsdp2`?"), ("zero2", "updates a weight as a whole"), ("single", "runs one process")],
)
def test_what_does_not_go_is_refused_and_nothing_is_written(tmp_path: Path, strategy: str, said: str) -> None:
    folder = sealed(tmp_path, make_recipe(train={"optimizer": "adafactor"}))
    plan = json.loads(folder.plan_file.read_text())
    with pytest.raises(UserError) as caught:
        plan_run_folder(folder.path, strategy=strategy, machine=HERE)
    assert said in str(caught.value)
    assert json.loads(folder.plan_file.read_text()) == plan


def test_a_run_that_is_planned_again_keeps_what_differs_from_its_parent_recipe(tmp_path: Path) -> None:
    folder = sealed(tmp_path, make_recipe())
    planned = plan_run_folder(folder.path, machine=HERE)
    assert planned.plan.base is None
    base = {"name": "../common.yaml", "changes": {"train.lr": [1e-4, 1e-3]}}
    create_run_folder(replace(planned.plan, base=base), planned.run.recipe)
    assert plan_run_folder(folder.path, machine=HERE).plan.base == base
