"""Files of a run folder that were edited are named, by each verb that they decide something for."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.render import describe_run_states
from launch.run_state import states_of
from sft_dist import evaluate, export, predict
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_json
from sft_dist.run import manifest
from sft_dist.run.folder import RunFolder
from sft_dist.run.manifest import SCRIPTS, TRAINING, changed_files, require_unchanged, write_manifest
from tests.launch.conftest import make_recipe


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs/demo/0123456789")
    folder.create(make_recipe())
    folder.plan_file.write_text("{}")
    folder.script.write_text("echo")
    (folder.source / "sft_dist").mkdir(parents=True)
    (folder.source / "sft_dist/train.py").write_text("pass")
    write_manifest(folder.path)
    manifest.source_digest.cache_clear()
    return folder


def test_nothing_has_changed_at_first(folder: RunFolder) -> None:
    assert changed_files(folder.path) == []
    assert folder.recipe() == make_recipe()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("recipe.json", "recipe.json"),
        ("plan.json", "plan.json"),
        ("run.sh", "run.sh"),
        ("source/sft_dist/train.py", "source"),
        ("source/datasets.py", "source"),
    ],
)
def test_an_edited_file_is_named_and_stays_named_when_the_run_is_resumed(
    folder: RunFolder, file: str, name: str
) -> None:
    with (folder.path / file).open("a") as stream:
        stream.write(" ")
    assert changed_files(folder.path) == [name]
    (state,) = states_of([], str(folder.path.parent))
    assert state.changed == (name,)
    assert f"warning: demo/0123456789: changed since the run was made: {name}" in describe_run_states([state])
    manifest.source_digest.cache_clear()
    write_manifest(folder.path)
    assert changed_files(folder.path) == ([name] if name in manifest.FIXED else [])


def test_a_missing_file_has_changed_and_caches_of_python_do_not_count(folder: RunFolder) -> None:
    (folder.source / "sft_dist/__pycache__").mkdir()
    (folder.source / "sft_dist/__pycache__/train.pyc").touch()
    folder.plan_file.unlink()
    assert changed_files(folder.path) == ["plan.json"]


@pytest.mark.parametrize("program", [evaluate, export])
def test_an_edited_recipe_is_refused_by_each_program(folder: RunFolder, capsys, program) -> None:
    folder.recipe_file.write_text(folder.recipe_file.read_text().replace("0.001", "0.002"))
    assert program.main([str(folder.path)]) == 2
    error = capsys.readouterr().err
    assert "changed since the run was made: recipe.json" in error
    assert f"to accept the change, delete {folder.path / 'manifest.json'}" in error


def test_predict_refuses_the_export_of_an_edited_run(folder: RunFolder, capsys) -> None:
    folder.export.mkdir()
    write_json(folder.export / "sft_dist.json", {"recipe": {}})
    folder.recipe_file.write_text("{}")
    assert predict.main([str(folder.path)]) == 2
    assert "changed since the run was made: recipe.json" in capsys.readouterr().err


def test_a_manifest_that_was_spoilt_is_named_and_without_one_nothing_is_compared(folder: RunFolder) -> None:
    folder.plan_file.write_text("[]")
    with pytest.raises(UserError, match="plan.json"):
        require_unchanged(folder.path, TRAINING)
    (folder.path / "manifest.json").write_text("[")
    with pytest.raises(UserError, match="manifest.json"):
        require_unchanged(folder.path, SCRIPTS)
    (folder.path / "manifest.json").unlink()
    assert changed_files(folder.path) == []
    assert folder.recipe() == make_recipe()
