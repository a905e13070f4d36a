"""The README.md of an exported folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from sft_dist.evaluation.model_card import model_card
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import make_recipe

SCORES = {"accuracy": 0.5, "examples": 4, "confusion": [[2, 0], [2, 0]]}


def card_of(model: str, folder: Path) -> str:
    recipe = make_recipe(model={"path": model})
    task: Any = SimpleNamespace(pipeline_tag="text-classification", labels=["neg", "pos"], counts_tokens=True)
    return model_card(recipe, RunFolder(folder), 7, "full", task, SCORES, {"test": SCORES})


@pytest.mark.parametrize(
    ("model", "base"), [("org/name", "org/name"), ("/models/mine", None), ("package:lib/model", None)]
)
def test_the_header_names_a_base_model_of_the_hub(tmp_path: Path, model: str, base: str | None) -> None:
    header = yaml.safe_load(card_of(model, tmp_path).split("---")[1])
    assert header.get("base_model") == base
    assert header["pipeline_tag"] == "text-classification"


def test_scores_of_all_splits_stand_side_by_side(tmp_path: Path) -> None:
    card = card_of("org/name", tmp_path)
    assert "| score | validation | test |" in card
    assert "| accuracy | 0.5000 | 0.5000 |" in card
    assert "confusion" not in card.split("## Recipe")[0]
    assert "step 7 of run" in card
