"""General tasks in a recipe: files are found beside it, names are checked before training, and code needs consent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.evaluate import changes_in, recipes_in, run_sweep
from sft_dist import evaluate
from sft_dist.recipe import lm_eval, machine
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.lm_eval import unknown_tasks
from sft_dist.recipe.load import load
from sft_dist.recipe.machine import missing_packages
from sft_dist.recipe.references import check_references
from sft_dist.recipe.trust import NO_TRUST, Trust
from sft_dist.run.folder import run_id

TASK = "task: capitals\ntag:\n  - geography\ndataset_path: json\n"


def write(folder: Path, task: str = "instruction-tuning", **settings: Any) -> Path:
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks/capitals.yaml").write_text(TASK)
    recipe = {
        "task": task,
        "model": {"path": "org/name"},
        "data": {"source": "org/rows"},
        "tuning": "full",
        "train": {"lr": 1e-3},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({**recipe, "evaluate": {"lm_eval": settings}}, indent=1))
    return file


def test_files_of_tasks_stand_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, tasks=["arc_easy", "tasks/capitals.yaml"], include_path="tasks", allow_code=True)
    monkeypatch.chdir("/")
    settings = load(file).evaluate.lm_eval
    assert settings is not None
    assert settings.tasks == ["arc_easy", str(tmp_path / "tasks/capitals.yaml")]
    assert settings.include_path == str(tmp_path / "tasks")
    assert [problem for problem in check_references(load(file)) if "lm_eval" in problem.path] == []
    missing = check_references(
        load(write(tmp_path, tasks=["tasks/capital.yaml"], include_path="task", allow_code=True))
    )
    (first, second) = [problem for problem in missing if "lm_eval" in problem.path]
    assert (first.path, first.hint) == ("evaluate.lm_eval.tasks.0", "did you mean `capitals.yaml`?")
    assert (second.path, second.hint) == ("evaluate.lm_eval.include_path", "did you mean `tasks`?")


REFUSED = {
    "no consent": ({"tasks": ["tasks/capitals.yaml"]}, "recipe.yaml:.*evaluate.lm_eval.allow_code: files of tasks can run Python"),
    "no consent to a folder": ({"tasks": ["capitals"], "include_path": "tasks"}, "set evaluate.lm_eval.allow_code: true"),
    "another task": ({"task": "text-classification", "tasks": ["arc_easy"]}, "recipe.yaml:.*which task: text-classification does not train"),
    "twice": ({"tasks": ["arc_easy", "arc_easy"]}, r"recipe.yaml:\d+:\d+: evaluate.lm_eval.tasks.1: the same task twice"),
    "no task": ({"tasks": []}, "evaluate.lm_eval.tasks"),
    "a misspelt key": ({"tasks": ["arc_easy"], "num_fewshots": 2}, "did you mean `num_fewshot`"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_is_refused_with_its_place(tmp_path: Path, name: str) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        load(write(tmp_path, **settings))


def test_names_are_looked_up_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lm_eval"
    (package / "tasks/arc").mkdir(parents=True)
    (package / "tasks/arc/arc_easy.yaml").write_text("tag: [ai2_arc, science]\ntask: arc_easy # easy\n")
    (package / "tasks/arc/group.yaml").write_text("group: reasoning\ntask:\n  - task: arc_hard\n")
    monkeypatch.setattr(lm_eval, "_package_folder", lambda: package)
    names = ["arc_easy", "ai2_arc", "reasoning", "arc_hard", "capitals", "geography"]
    assert unknown_tasks(load(write(tmp_path, tasks=names, include_path="tasks", allow_code=True))) == []
    (problem,) = unknown_tasks(load(write(tmp_path, tasks=["arc_easy", "arc_esay"])))
    assert (problem.path, problem.hint) == ("evaluate.lm_eval.tasks.1", "did you mean `arc_easy`?")


def test_a_missing_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "is_installed", lambda module: module != "lm_eval")
    (problem,) = missing_packages(load(write(tmp_path, tasks=["arc_easy"])))
    assert problem.path == "evaluate.lm_eval"
    assert problem.hint == "pip install 'sft-dist[lm-eval]'"


def test_a_run_folder_consents_to_no_code_of_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, tasks=["tasks/capitals.yaml"], allow_code=True)
    path = tmp_path / "run"
    path.mkdir()
    (path / "recipe.json").write_text(load(file).model_dump_json())
    assert evaluate.main([str(path)]) == 2
    assert "--allow-task-code" in capsys.readouterr().err
    assert evaluate.main([str(path), "--allow-task-code"]) == 2
    assert "no checkpoint" in capsys.readouterr().err
    with pytest.raises(UserError, match="--allow-task-code"):
        run_sweep([path], path, force=False, trust=NO_TRUST)
    assert Trust.in_recipes(recipes_in([str(file)])) == Trust(task_code=True)
    assert Trust.in_recipes(recipes_in([str(path)])) == NO_TRUST
    assert (NO_TRUST | Trust(task_code=True)).arguments() == ["--allow-task-code"]


def test_recipes_with_different_general_tasks_are_not_evaluated_together(tmp_path: Path) -> None:
    recipes = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        recipes.append(load(write(tmp_path / name, tasks=[f"{name}.yaml"], allow_code=True)))
    with pytest.raises(UserError, match="different general tasks"):
        changes_in(recipes)
    assert len(changes_in(recipes[:1] * 2)) == 1


def test_a_trained_run_is_asked_what_the_recipe_says_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load(write(tmp_path, tasks=["tasks/capitals.yaml"], allow_code=True))
    evaluation = recipe.evaluate.model_copy(update={"lm_eval": None})
    trained = recipe.model_copy(update={"evaluate": evaluation})
    assert run_id(trained) == run_id(recipe)
    (option,) = changes_in(recipes_in([str(tmp_path / "recipe.yaml")]))
    path = tmp_path / "run"
    path.mkdir()
    (path / "recipe.json").write_text(trained.model_dump_json())
    for options, message in (([], "--allow-task-code"), (["--allow-task-code"], "no checkpoint")):
        assert evaluate.main([str(path), option, *options]) == 2
        assert message in capsys.readouterr().err
    assert evaluate.main([str(path), "--lm-eval={}"]) == 2
    assert "not the settings of general tasks" in capsys.readouterr().err
