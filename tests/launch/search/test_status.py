"""What people and programs read about a search."""

from __future__ import annotations

import json

import pytest

from launch.run_folders import recipe_folders
from launch.search.best import show_best
from launch.search.folder import SUMMARY
from launch.search.run import stop_search
from launch.search.status import show_status
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_object
from sft_dist.recipe.load import load
from sft_dist.run.folder import run_id
from tests.launch.conftest import Workplace
from tests.launch.search.conftest import define, search, trials_of

TEXT = """\
search:
  space: {train.lr: {log: [1.0e-5, 1.0e-1]}, train.optimizer: {choice: [adamw, sgd]}, train.optimizer.momentum: {float: [0.1, 0.9], when: {train.optimizer: sgd}}}
  budget: {trials: 12}
"""


@pytest.mark.slow  # importance loads scikit-learn
def test_the_status_the_best_recipe_and_the_folders_of_a_search(workplace: Workplace) -> None:
    recipe, root = str(workplace.recipe), workplace.path / "runs"
    definition = define(workplace, TEXT)
    with pytest.raises(UserError, match="this search has not begun; first: sft-dist search"):
        show_status(recipe, [], root, False)
    assert search(definition) == 0
    trials = trials_of(definition)
    best = max(trials, key=lambda trial: trial.value or 0)

    text = show_status(recipe, [], root, False)
    assert "12 finished" in text
    assert f"best: trial {best.number}, accuracy {best.value:.4f}" in text
    assert "importance (PED-ANOVA): train.lr" in text
    summary = json.loads(show_status(recipe, [], root, True))
    assert summary["best"] == best.number
    assert [trial["run"] for trial in summary["trials"]] == [trial.run for trial in trials]
    assert summary == {**read_object(definition.folder / SUMMARY), "controller": None}

    file = workplace.path / "best.yaml"
    assert f"trial {best.number} of 12" in show_best(recipe, [], root, file)
    assert run_id(load(file)) == best.run, "the recipe of the best trial is the trial's run"
    assert load(file).search is None
    with pytest.raises(UserError, match="exists already"):
        show_best(recipe, [], root, file)

    assert {folder.name for folder in recipe_folders(recipe, root)} == {trial.run for trial in trials}
    assert "asked 0 running trials" in stop_search(recipe, [], root)
