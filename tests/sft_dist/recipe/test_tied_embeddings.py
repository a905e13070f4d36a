"""Adapters that the merged export cannot hold, seen in the model's config before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.planning import plan_runs
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import load
from sft_dist.recipe.tied_embeddings import unmergeable_targets
from tests.sft_dist.recipe.recipe_texts import write

RECIPE = """\
task: instruction-tuning
model: {path: ./model}
data: {source: ./train.jsonl}
tuning:
  method: lora
  target_modules: [q_proj, embed_tokens]
train: {epochs: 1, lr: 1e-4}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    return tmp_path


def problems(folder: Path, config: dict[str, Any], *overrides: str) -> list[str]:
    (folder / "model" / "config.json").write_text(json.dumps(config))
    return [problem.path for problem in unmergeable_targets(load(write(folder, RECIPE), overrides))]


TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("config", "overrides", "paths"),
    [
        (TIED, [], ["tuning.target_modules.1"]),
        ({}, [], ["tuning.target_modules.1"]),
        ({"tie_word_embeddings": False}, [], []),
        (TIED, ["tuning.target_modules=[lm_head]"], ["tuning.target_modules.0"]),
        (TIED, ["tuning.target_modules=.*(q_proj|lm_head)"], ["tuning.target_modules"]),
        (TIED, ["tuning.target_modules=.*_proj"], []),
        (TIED, ["tuning.target_modules=all-linear"], []),
        (TIED, ["tuning.target_modules=[q_proj]", "tuning.modules_to_save=[embed_tokens, lm_head]"], []),
        (TIED, ["evaluate.export=adapter"], []),
        (TIED, ["evaluate.export=none"], []),
        (TIED, ["task=text-classification"], []),  # such models have no head that shares weights
    ],
)
def test_targets_that_are_tied(folder: Path, config: dict[str, Any], overrides: list[str], paths: list[str]) -> None:
    assert problems(folder, config, *overrides) == paths


def test_a_plan_names_the_line(folder: Path) -> None:
    problems(folder, TIED)
    with pytest.raises(UserError) as caught:
        plan_runs(str(folder / "my.yaml"), [], folder / "runs")
    said = str(caught.value)
    assert "my.yaml:6:28: tuning.target_modules.1: the model ties its embeddings to its head" in said
    assert "evaluate.export: adapter" in said
