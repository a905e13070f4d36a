"""Sealed folders."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.expand import Run
from launch.plan import Machine, Plan, plan_run
from launch.run_folders import folder_name, newest, script, seal
from sft_dist.recipe.errors import UserError
from sft_dist.run.folder import RunFolder, run_id
from tests.launch.conftest import ROWS, make_recipe

RECIPE = make_recipe()


def planned(folder: Path, python: str = "/venv/bin/python") -> Plan:
    return plan_run(Run(folder.name, RECIPE, {}), Machine(0, 2), ROWS, folder, python)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planned(tmp_path / "runs/demo" / run_id(RECIPE))


def test_a_capsule_holds_recipe_plan_source_and_script_and_is_private(plan: Plan) -> None:
    folder = seal(plan, RECIPE)
    assert folder.recipe() == RECIPE
    assert json.loads(folder.plan_file.read_text())["argv"] == list(plan.argv)
    assert (folder.source / "sft_dist/train.py").is_file()
    assert (folder.source / "sft_dist/recipe/schema.py").is_file()
    assert not list(folder.source.rglob("_shipped"))
    assert not list(folder.source.rglob("__pycache__"))
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.path.parent.stat().st_mode) == 0o700


def test_sealing_again_leaves_recipe_and_source_alone_and_renews_the_plan(plan: Plan) -> None:
    folder = seal(plan, RECIPE)
    kept = folder.source / "sft_dist/train.py"
    kept.write_text("# as it was")
    folder.recipe_file.write_text("{}")
    seal(replace(plan, argv=("other",)), RECIPE)
    assert kept.read_text() == "# as it was"
    assert folder.recipe_file.read_text() == "{}"
    assert json.loads(folder.plan_file.read_text())["argv"] == ["other"]


def test_an_interrupted_copy_of_the_source_is_made_anew(plan: Plan) -> None:
    aside = RunFolder(plan.folder).source / ".sft_dist"
    aside.mkdir(parents=True)
    (aside / "half.py").touch()
    folder = seal(plan, RECIPE)
    assert not (folder.source / "sft_dist/half.py").exists()
    assert (folder.source / "sft_dist/train.py").is_file()


@pytest.mark.parametrize("name", ["..", "0123", "0123456789; rm -rf", "0123456789-0", "0123456789-x"])
def test_a_name_that_is_no_run_id_never_becomes_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        seal(planned(tmp_path / "demo" / name), RECIPE)
    assert not (tmp_path / "demo").exists()


def test_a_link_in_the_place_of_a_run_folder_is_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    plan.folder.parent.mkdir(parents=True)
    plan.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a link"):
        seal(plan, RECIPE)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_newest_capsule_is_current_and_fresh_takes_the_next_number() -> None:
    a, b = "a" * 10, "b" * 10
    numbers = newest([a, f"{a}-2", f"{a}-10", b, "leaderboard.md", f"{a}-x"])
    assert folder_name(a, numbers) == f"{a}-10"
    assert folder_name(a, numbers, fresh=True) == f"{a}-11"
    assert folder_name(b, numbers, fresh=True) == f"{b}-2"
    assert folder_name("c" * 10, numbers) == "c" * 10
    assert folder_name("c" * 10, numbers, fresh=True) == "c" * 10


def test_run_sh_is_the_golden_one(golden: Callable[[str, str], None]) -> None:
    golden("run.sh", script(planned(Path("/runs/demo/0123456789"))))


def test_run_sh_quotes_what_a_shell_would_act_on(tmp_path: Path) -> None:
    import subprocess

    folder = tmp_path / "0123456789"
    folder.mkdir()
    odd = tmp_path / 'py $(touch x) `touch y` "z"'
    odd.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    odd.chmod(0o755)
    (folder / "run.sh").write_text(script(planned(folder, str(odd))))
    done = subprocess.run(["bash", "run.sh"], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["run.sh"]
