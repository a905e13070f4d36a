"""Any model is scored under a recipe, on its validation split or on other rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_dist import evaluate_model
from sft_dist.checkpoints.store import Checkpoint
from sft_dist.data.prepare import prepare
from sft_dist.evaluate_model import candidate_of
from sft_dist.evaluation.evaluator import Evaluator
from sft_dist.export import ABOUT
from sft_dist.recipe.load import load
from sft_dist.recipe.trust import Trust
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor
from sft_dist.tuning import save_weights
from tests.conftest import write_reviews

COMMIT = "0123456789" * 4


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_model: Path, reviews: Path) -> Path:
    file = tmp_path / "my.yaml"
    settings: dict[str, Any] = {
        "task": "text-classification",
        "model": {"path": str(tiny_model), "allow_pickle": True},
        "data": {"source": str(reviews), "max_length": 32},
        "tuning": {"method": "lora", "r": 4},
        "train": {"lr": 1e-3},
    }
    file.write_text(json.dumps(settings))
    return file


def test_a_model_takes_the_place_of_the_recipes_without_its_permissions(recipe_file: Path) -> None:
    recipe = load(recipe_file)
    candidate = candidate_of(recipe, "someone/model", "rows/*.csv")
    assert (candidate.recipe.model.path, candidate.recipe.model.allow_pickle) == ("someone/model", False)
    assert candidate.recipe.tuning.method == "full"
    source: Any = candidate.recipe.data.source
    assert (source.train, source.test) == (recipe.data.source, "rows/*.csv")
    trusted = candidate_of(recipe, "someone/model", trust=Trust(frozenset([COMMIT]), True)).recipe.model
    assert (trusted.trust_remote_code, trusted.allow_pickle) == (COMMIT, True)


def test_several_data_sets_are_one_table() -> None:
    tables = {"a.csv": {"examples": 30, "loss": 0.5, "confusion_matrix": [[1]]}, "b.csv": {"examples": 7, "loss": None}}
    assert evaluate_model._text(tables).splitlines() == [
        "| data  | examples | loss      |",
        "| ----- | -------- | --------- |",
        "| a.csv | 30       | 0.5000    |",
        "| b.csv | 7        | undefined |",
    ]
    assert evaluate_model._text({"None": {"loss": 0.5}}) == f"{'loss':<24}0.5000"


def test_an_adapter_lies_on_the_recipes_base(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    recipe = load(recipe_file)
    candidate = candidate_of(recipe, str(tmp_path / "adapter"))
    assert (candidate.recipe.model, candidate.recipe.tuning, candidate.adapter) == (
        recipe.model, recipe.tuning, tmp_path / "adapter",
    )  # fmt: skip


def test_the_recipe_does_not_consent_for_the_base_that_an_adapter_brings(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = json.loads(load(recipe_file).model_dump_json())
    recipe["model"]["path"] = "someone/model"
    (tmp_path / "adapter_config.json").write_text("{}")
    about = {"recipe": recipe, "labels": ["neg", "pos"], "step": 1, "form": "adapter"}
    (tmp_path / ABOUT).write_text(json.dumps(about))
    assert evaluate_model.main([str(recipe_file), "--model", str(tmp_path)]) == 2
    assert "allows itself to read pickles of someone/model" in capsys.readouterr().err


def scores_of(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert evaluate_model.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_an_adapter_and_a_merged_model_score_as_their_checkpoint(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load(recipe_file)
    task = task_of(recipe)
    processor = load_processor(recipe, task)
    prepare(recipe, task, processor)
    model: Any = build_model(recipe, task, processor)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    checkpoint = Checkpoint(RunFolder(tmp_path / "run").checkpoint(1), 1)
    save_weights(model, model.state_dict(), checkpoint.model)
    (checkpoint.path / "manifest.json").write_text("{}")
    expected = Evaluator().score(recipe, checkpoint, "validation")
    adapter = scores_of(capsys, recipe_file, "--model", checkpoint.model)
    assert adapter == json.loads(json.dumps(expected))

    merged = tmp_path / "merged"
    model.merge_and_unload().save_pretrained(merged)
    processor.save_pretrained(merged)
    about = {"recipe": json.loads(recipe.model_dump_json()), "labels": task.labels, "step": 1, "form": "merged"}
    (merged / ABOUT).write_text(json.dumps(about))
    assert scores_of(capsys, recipe_file, "--model", merged)["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    others = write_reviews(tmp_path / "others.csv", 30, seed=5)
    assert scores_of(capsys, recipe_file, "--model", merged, "--data", others)["examples"] == 30
    tables = scores_of(capsys, recipe_file, "--model", merged, "--data", others, "--data", recipe.data.source)
    alone = scores_of(capsys, recipe_file, "--model", merged, "--data", recipe.data.source)
    assert (list(tables), tables[str(others)]["examples"]) == ([str(others), recipe.data.source], 30)
    assert tables[recipe.data.source] == alone

    (merged / ABOUT).write_text(json.dumps({**about, "labels": task.labels[::-1]}))
    assert evaluate_model.main([str(recipe_file), "--model", str(merged)]) == 2
    assert "the model has the classes pos, neg, and the data neg, pos" in capsys.readouterr().err
