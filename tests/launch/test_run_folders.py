"""Run folders are found and created."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.expand import Run
from launch.plan import Machine, Plan, plan_run
from launch.run_folders import (
    all_run_folders,
    create_run_folder,
    find_run,
    find_runs,
    folder_name,
    folder_numbers,
    is_one_run,
    run_script,
)
from sft_dist.recipe.errors import UserError
from sft_dist.run.folder import RunFolder, run_id
from tests.launch.conftest import ROWS, make_recipe

ID = "0123456789"
RECIPE = make_recipe()


def planned(folder: Path, python: str = "/venv/bin/python") -> Plan:
    return plan_run(Run(folder.name, RECIPE, {}), Machine(0, 2), ROWS, folder, python)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planned(tmp_path / "runs/demo" / run_id(RECIPE))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "runs/demo" / ID)


def make_run(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    folder.create(RECIPE)
    return folder


def test_runs_are_found_by_folder_id_and_unique_beginning(tmp_path: Path, folder: RunFolder) -> None:
    root = tmp_path / "runs"
    other = make_run(root / "demo" / "0199999999")
    assert find_run(str(folder.path), root) == folder.path
    assert find_run(ID, root) == folder.path
    assert find_run("012", root) == folder.path
    assert find_run(f"demo/{other.id}", root) == other.path
    with pytest.raises(UserError, match="matches several runs"):
        find_run("01", root)
    with pytest.raises(UserError, match="no run 'ff'"):
        find_run("ff", root)
    with pytest.raises(UserError, match="no run ''"):
        find_run("", root)


def write_recipe(folder: Path, epochs: float) -> Path:
    file = folder / "demo.yaml"
    data = RECIPE.model_dump(mode="json", include={"task", "model", "data", "tuning", "resources"})
    file.write_text(json.dumps({**data, "train": {"lr": 1e-3, "epochs": epochs}}))
    return file


def test_a_recipe_its_name_a_folder_and_an_id_stand_for_its_runs(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    recipe = write_recipe(tmp_path, 2.0)
    assert find_runs(str(recipe), root) == []
    folder = make_run(root / "demo" / run_id(RECIPE)).path
    other = make_run(root / "demo-2" / "0199999999").path
    for text in (
        str(recipe),
        "demo",
        str(root / "demo"),
        str(folder),
        folder.name,
        f"demo/{folder.name}",
        folder.name[:4],
    ):
        assert find_runs(text, root) == [folder], text
        assert find_run(text, root) == folder
    assert find_runs(str(root), root) == [folder, other]
    assert [is_one_run(text) for text in (str(folder), "0a1b", "demo/0a1b", "demo", str(root), "demo.yaml")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_after_an_edit_of_the_recipe_its_old_runs_are_named_with_the_difference(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    old = make_run(root / "demo" / run_id(RECIPE)).path
    edited = write_recipe(tmp_path, 200.0)
    with pytest.raises(UserError) as error:
        find_runs(str(edited), root)
    assert f"1 with other settings: demo/{old.name} has epochs=2, the recipe epochs=200" in str(error.value)
    assert find_runs(str(edited), root, ["train.epochs=2.0"]) == [old]


def test_runs_that_a_text_does_not_tell_apart_are_named_by_their_settings(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for lr in (1e-4, 1e-3):
        recipe = make_recipe(train={"lr": lr})
        RunFolder(root / "demo" / run_id(recipe)).create(recipe)
    with pytest.raises(UserError, match=r"(?s)matches several runs: demo/.* \(lr=1e-[34]\), demo/.* \(lr=1e-[34]\)"):
        find_run("demo", root)


def test_the_whole_id_is_not_mistaken_for_the_beginning_of_a_fresh_one(tmp_path: Path, folder: RunFolder) -> None:
    root = tmp_path / "runs"
    make_run(root / "demo" / f"{ID}-2")
    make_run(root / "demo" / f"{ID}-10")
    assert find_run(ID, root) == folder.path
    assert [path.name for path in all_run_folders(root)] == [ID, f"{ID}-2", f"{ID}-10"]


def test_a_run_folder_holds_recipe_plan_source_and_script_and_is_private(plan: Plan) -> None:
    folder = create_run_folder(plan, RECIPE)
    assert folder.recipe() == RECIPE
    assert json.loads(folder.plan_file.read_text())["argv"] == list(plan.argv)
    assert (folder.source / "sft_dist/train.py").is_file()
    assert (folder.source / "sft_dist/recipe/schema.py").is_file()
    assert not list(folder.source.rglob("_shipped"))
    assert not list(folder.source.rglob("__pycache__"))
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.path.parent.stat().st_mode) == 0o700


def test_creating_it_again_leaves_recipe_and_source_alone_and_renews_the_plan(plan: Plan) -> None:
    folder = create_run_folder(plan, RECIPE)
    (folder.path / "manifest.json").unlink()  # as in older run folders
    kept = folder.source / "sft_dist/train.py"
    kept.write_text("# as it was")
    folder.recipe_file.write_text("{}")
    create_run_folder(replace(plan, argv=("other",)), RECIPE)
    assert kept.read_text() == "# as it was"
    assert folder.recipe_file.read_text() == "{}"
    assert json.loads(folder.plan_file.read_text())["argv"] == ["other"]


def test_an_interrupted_copy_of_the_source_is_repeated(plan: Plan) -> None:
    leftover = RunFolder(plan.folder).source / ".sft_dist"
    leftover.mkdir(parents=True)
    (leftover / "half.py").touch()
    folder = create_run_folder(plan, RECIPE)
    assert not (folder.source / "sft_dist/half.py").exists()
    assert (folder.source / "sft_dist/train.py").is_file()


@pytest.mark.parametrize("name", ["..", "0123", "0123456789; rm -rf", "0123456789-0", "0123456789-x"])
def test_a_name_that_is_no_run_id_never_becomes_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        create_run_folder(planned(tmp_path / "demo" / name), RECIPE)
    assert not (tmp_path / "demo").exists()


def test_a_link_in_the_place_of_a_run_folder_is_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    plan.folder.parent.mkdir(parents=True)
    plan.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a symbolic link"):
        create_run_folder(plan, RECIPE)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_newest_folder_is_current_and_fresh_takes_the_next_number(tmp_path: Path) -> None:
    a, b = "a" * 10, "b" * 10
    for name in (a, f"{a}-2", f"{a}-10", b, "leaderboard.md", f"{a}-x"):
        (tmp_path / name).touch()
    numbers = folder_numbers(tmp_path)
    assert folder_name(a, numbers) == f"{a}-10"
    assert folder_name(a, numbers, fresh=True) == f"{a}-11"
    assert folder_name(b, numbers, fresh=True) == f"{b}-2"
    assert folder_name("c" * 10, numbers) == "c" * 10
    assert folder_name("c" * 10, numbers, fresh=True) == "c" * 10
    assert folder_numbers(tmp_path / "nowhere") == {}


def test_run_sh_is_the_golden_one(golden: Callable[[str, str], None]) -> None:
    golden("run.sh", run_script(planned(Path("/runs/demo/0123456789"))))


def test_run_sh_quotes_what_a_shell_would_act_on(tmp_path: Path) -> None:
    import subprocess

    folder = tmp_path / "0123456789"
    folder.mkdir()
    odd = tmp_path / 'py $(touch x) `touch y` "z"'
    odd.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    odd.chmod(0o755)
    (folder / "run.sh").write_text(run_script(planned(folder, str(odd))))
    done = subprocess.run(["bash", "run.sh"], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["run.sh"]
