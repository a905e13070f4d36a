"""An exported model and a run folder allow themselves nothing: consent comes from the command line or the user's recipe."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from launch.evaluate import recipes_in
from launch.planning import plan_run_folder, plan_runs
from sft_dist import evaluate, export, predict
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.trust import Trust
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASKED = [("trust_remote_code", COMMIT, f"--trust-remote-code {COMMIT}"), ("allow_pickle", True, "--allow-pickle")]


def recipe_of(model: Path | str, tuning: str = "full", **settings: Any) -> dict[str, Any]:
    return {
        "name": "demo",
        "task": "text-classification",
        "model": {"path": str(model), **settings},
        "data": {"source": "/nowhere.csv"},
        "tuning": tuning,
        "train": {"lr": 1e-3},
    }


def add_code(folder: Path, marker: Path) -> None:
    """Puts code into a model folder that leaves a marker when it runs, wherever transformers looks for code."""
    folder.mkdir(parents=True, exist_ok=True)
    code = (
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import BertConfig, BertForSequenceClassification, BertTokenizer\n"
        "class Config(BertConfig):\n    model_type = 'evil'\n"
        "class Model(BertForSequenceClassification):\n    pass\n"
        "class Tokenizer(BertTokenizer):\n    pass\n"
    )
    (folder / "evil.py").write_text(code)
    auto = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    tokenizer = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {**auto, **tokenizer}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Tokenizer", "auto_map": tokenizer}))


def write_export(folder: Path, recipe: dict[str, Any], form: str) -> None:
    (folder / "sft_dist.json").write_text(json.dumps({"recipe": recipe, "labels": ["a", "b"], "form": form}))


@pytest.mark.parametrize("form", ["merged", "adapter"])
@pytest.mark.parametrize("settings", [{}, {"trust_remote_code": COMMIT}, {"allow_pickle": True}])
@pytest.mark.parametrize("options", [[], ["--trust-remote-code", COMMIT, "--allow-pickle"]])
def test_predict_never_runs_code_that_an_export_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], form, settings, options
) -> None:
    folder, marker = tmp_path / "export", tmp_path / "marker"
    add_code(folder, marker)
    write_export(folder, recipe_of(folder, "lora" if form == "adapter" else "full", **settings), form)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 20)))
    assert predict.main([str(folder), *options]) == 2
    assert not marker.exists()
    assert "[y/N]" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("name", "value", "option"), ASKED)
def test_every_verb_needs_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str], name, value, option) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "recipe.json").write_text(Recipe.model_validate(recipe_of("/nowhere", **{name: value})).model_dump_json())
    for program in (evaluate, export):
        assert program.main([str(path)]) == 2
        assert option in capsys.readouterr().err
        assert program.main([str(path), *option.split()]) == 2
        assert "no checkpoint" in capsys.readouterr().err
    for plan in (lambda: plan_run_folder(path), lambda: plan_runs(str(path), [], tmp_path)):
        with pytest.raises(UserError, match=option):
            plan()


def test_a_recipe_of_the_user_consents_and_a_run_folder_does_not(tmp_path: Path) -> None:
    recipe = tmp_path / "demo.yaml"
    recipe.write_text(json.dumps(recipe_of("org/name", trust_remote_code=COMMIT)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(recipe.read_text())
    assert Trust.in_recipes(recipes_in([str(recipe)])) == Trust(frozenset({COMMIT}))
    assert Trust.in_recipes(recipes_in([str(recipe), "model.allow_pickle=true"])) == Trust(frozenset({COMMIT}), True)
    assert Trust.in_recipes(recipes_in([str(tmp_path / "run"), "0a1b"])) == Trust()


def test_consent_holds_for_the_hub_alone(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    add_code(tmp_path / "model", marker)
    recipe = Recipe.model_validate(recipe_of(tmp_path / "model", trust_remote_code=COMMIT))
    with pytest.raises(UserError, match="hub models only"):
        load_processor(recipe, task_of(recipe))
    with pytest.raises(UserError, match="hub models only"):
        build_model(recipe, task_of(recipe), None)
    assert not marker.exists()


def test_the_run_that_a_winner_is_compared_with_needs_the_option_too(tmp_path: Path, capsys) -> None:
    for name, settings in (("new", {}), ("old", {"trust_remote_code": COMMIT})):
        recipe = Recipe.model_validate(recipe_of("org/name", **settings))
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(recipe.model_dump_json())
    assert evaluate.main([str(tmp_path / "new"), "--no-worse-than", str(tmp_path / "old")]) == 2
    assert f"--trust-remote-code {COMMIT}" in capsys.readouterr().err
