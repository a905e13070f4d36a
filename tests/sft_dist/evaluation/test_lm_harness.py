"""Tasks of lm-eval on a model in memory: the same numbers as lm-eval's own, and nothing that runs without consent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager

from sft_dist import evaluate_model
from sft_dist.evaluation import lm_harness
from sft_dist.evaluation.general_sets import all_scores, document_scores, general_sets
from sft_dist.evaluation.lm_harness import Harness
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import load
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor
from tests.sft_dist.evaluation.general_tasks import MULTIPLE_CHOICE, settings_of, write_base, write_tasks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model", steps=15)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


def recipe_of(folder: Path, base: Path, tasks: list[Any], task: dict[str, Any] | None = None, **changed: Any) -> Recipe:
    settings = settings_of(base, tasks, folder, **changed)
    settings["task"] |= task or {}
    (folder / "recipe.yaml").write_text(json.dumps({"name": "made", "train": {"lr": 1e-3}, **settings}))
    return load(folder / "recipe.yaml")


def evaluated(recipe: Recipe) -> tuple[dict[str, Any], Any, Any]:
    task = task_of(recipe)
    processor = load_processor(recipe, task)
    model = build_model(recipe, task, processor).eval()
    return Harness(recipe).evaluate(model, processor), model, processor


def test_scores_are_those_of_lm_eval_on_the_exported_model(tmp_path, base, tasks, monkeypatch):
    names = [tasks / "choice.yaml", tasks / "capital.yaml"]
    recipe = recipe_of(tmp_path, base, names, {"system": "Answer."}, limit=12)
    record, model, processor = evaluated(recipe)
    export = tmp_path / "export"
    model.save_pretrained(export)
    processor.save_pretrained(export)
    task_of(recipe).complete_export(export)
    monkeypatch.chdir(tasks)
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
    expected = lm_eval.simple_evaluate(
        "hf", f"pretrained={export},dtype=float32", list(map(str, names)), batch_size=64, device="cpu", limit=12, apply_chat_template=True,
        task_manager=TaskManager(include_defaults=False), bootstrap_iters=0,
    )  # fmt: skip
    scores = {f"lm_eval/{task}/{key.removesuffix(',none')}": value for task, metrics in expected["results"].items()
              for key, value in metrics.items() if "," in key and "stderr" not in key}  # fmt: skip
    assert all_scores(record) == pytest.approx(scores, abs=1e-12)
    assert len(scores) == 4
    assert 0 < scores["lm_eval/choice/acc"] <= 1
    assert [row["filtered_resps"] for row in record["samples"] if row["task"] == "capital"] == [
        sample["filtered_resps"] for sample in expected["samples"]["capital"]
    ]


def test_any_model_is_asked_by_the_recipe_of_the_user(tmp_path, base, tasks, capsys):
    recipe = recipe_of(tmp_path, base, [tasks / "choice.yaml"], limit=12)
    assert evaluate_model.main([str(tmp_path / "recipe.yaml"), "--model", str(base), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    record, _, _ = evaluated(recipe)
    assert {name: score for name, score in scores.items() if name.startswith("lm_eval/")} == all_scores(record)
    assert scores["token_accuracy"] > 0


def test_a_group_is_judged_by_all_of_its_documents(tmp_path, base, tasks):
    recipe = recipe_of(tmp_path, base, ["both"], include_path=str(tasks), limit=5)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:  # instead of reading the thousands that come with lm-eval
        patch.setattr(lm_harness, "_manager", lambda settings: manager)
        record, _, _ = evaluated(recipe)
    (pair,) = general_sets(record, record)
    assert pair.name == "lm_eval/both/acc"
    assert pair.winner == pytest.approx(all_scores(record)["lm_eval/both/acc"])
    assert pair.winner_scores.num_units == 10


def test_corpus_scores_are_resampled_by_lm_eval_s_own_aggregation(tmp_path, base, tasks):
    record, _, _ = evaluated(recipe_of(tmp_path, base, [tasks / "capital.yaml"], limit=6))
    metric = record["tasks"]["capital"]["metrics"]["bleu"]
    scores = document_scores(metric)
    assert scores.evaluate(scores.predictions, np.arange(6)) == pytest.approx(metric["score"])


PACKAGE = {"include_path": None, "allow_code": False}  # as if the task had come with lm-eval
FAULTS = {
    "no such task": ({"tasks": ["choce"]}, "no task, group or tag of this name.*did you mean `choice`"),
    "a file of data is missing": ({"file": "capitals.json"}, "names of data files are relative to the task's own file"),
    "a program of the hub": ({"extra": "  - {metric: code_eval, hf_evaluate: true}\n", **PACKAGE}, "program of the hub"),
    "code of the model": ({"extra": "unsafe_code: true\n", **PACKAGE}, "runs the code that the model writes"),
    "files without consent": ({"allow_code": False}, "files of tasks can run Python"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_or_may_not_be_used_is_a_user_error(tmp_path, base, tasks, monkeypatch, name):
    fault, message = FAULTS[name]
    recipe = recipe_of(tmp_path, base, [tasks / "choice.yaml"])
    changed = {"tasks": ["choice"], "include_path": str(tasks), **fault}
    if "file" in fault:
        (tasks / changed.pop("file")).unlink()
    if "extra" in fault:
        (tasks / "choice.yaml").write_text(MULTIPLE_CHOICE.format(name="choice") + changed.pop("extra"))
    settings = recipe.evaluate.lm_eval.model_copy(update=changed)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    monkeypatch.setattr(lm_harness, "_manager", lambda settings: manager)
    monkeypatch.chdir(tasks)
    with pytest.raises(UserError, match=message.replace(".*", "(.|\n)*")):
        Harness(recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"lm_eval": settings})}))
