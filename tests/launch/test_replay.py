"""Training a run once more; `test_end_to_end` does so with a real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import replay
from launch.diff import compare_runs
from launch.planning import PlannedRun
from launch.run_folders import create_run_folder
from sft_dist.recipe.errors import UserError
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import make_recipe
from tests.launch.test_planning import sealed


@pytest.fixture
def original(tmp_path: Path) -> RunFolder:
    folder = sealed(tmp_path, make_recipe())
    (folder.source / "sft_dist/since_removed.py").write_text("answer = 42\n")
    log(folder, 0.5)
    return folder


def log(folder: RunFolder, *losses: float) -> None:
    lines = [json.dumps({"kind": "train", "step": step, "loss": loss}) for step, loss in enumerate(losses, 1)]
    folder.metrics_file.write_text("\n".join(lines) + "\n")


def train_as(loss: float, code: int = 0):
    """Stands for `run_all`: creates the folder as it does, and logs a loss."""

    def run_all(planned: list[PlannedRun], runner: object) -> int:
        log(create_run_folder(planned[0].plan, planned[0].run.recipe), loss)
        return code

    return run_all


def test_the_replay_has_the_recipe_the_source_and_the_processes_of_the_original(original, monkeypatch, capsys):
    monkeypatch.setattr(replay, "run_all", train_as(0.5))
    assert replay.replay_run(original.path, None, as_json=False) == 0
    again = RunFolder(original.path.with_name(f"{original.id}-2"))
    assert again.recipe_file.read_bytes() == original.recipe_file.read_bytes()
    assert (again.source / "sft_dist/since_removed.py").read_text() == "answer = 42\n"
    plans = [json.loads(folder.plan_file.read_text()) for folder in (original, again)]
    assert plans[0]["processes_per_node"] == plans[1]["processes_per_node"] == 2
    assert plans[1]["argv"][-1] == str(again.path)
    assert "the curve is reproduced" in capsys.readouterr().err


def test_another_loss_is_exit_code_1_and_says_what_else_differs(original, monkeypatch, capsys):
    monkeypatch.setattr(replay, "run_all", train_as(0.25))
    assert replay.replay_run(original.path, 1, as_json=True) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["curves"]["train"]["first_values"] == [0.5, 0.25]
    assert "not reproduced; what differs: hardware" in shown.err


def test_a_replay_that_failed_is_not_compared(original, monkeypatch, capsys):
    monkeypatch.setattr(replay, "run_all", train_as(0.5, code=130))
    assert replay.replay_run(original.path, None, as_json=False) == 130
    assert capsys.readouterr().out == ""


def test_where_nothing_differs_but_the_curve_determinism_is_named(original):
    log(original, 0.5)
    twin = RunFolder(original.path.with_name("ffffffffff"))
    original.path.rename(twin.path)
    original.create(twin.recipe())
    log(original, 0.4)
    assert "train.deterministic" in replay.describe_result(compare_runs(twin.path, original.path))


def test_runs_of_a_matrix_share_their_source_in_the_replay_too(original):
    shared = original.path.parent / ".source-0123"
    original.source.rename(shared)
    original.source.symlink_to("../.source-0123")
    again = RunFolder(original.path.with_name(f"{original.id}-2"))
    replay.copy_sealed_source(original, again)
    assert again.source.resolve() == shared.resolve()


def test_a_run_that_logged_nothing_cannot_be_replayed(original):
    original.metrics_file.unlink()
    with pytest.raises(UserError, match="has logged no step"):
        replay.plan_replay(original.path, None)


def test_a_folder_that_another_process_made_is_not_taken(original):
    again = RunFolder(original.path.with_name(f"{original.id}-2"))
    again.path.mkdir()
    with pytest.raises(UserError, match="made by another process"):
        replay.copy_sealed_source(original, again)
