"""What a folder says about its run."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from launch.render import describe_run_states
from launch.run_state import state_of, states_of
from sft_dist.recipe.files import write_json
from sft_dist.run.folder import AttemptFolder, RunFolder
from tests.launch.conftest import make_recipe

ID = "0123456789"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "runs/demo" / ID)


def make_run(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    folder.create(make_recipe())
    return folder


def attempt(folder: RunFolder, outcome: dict[str, Any] | None = None, **errors: dict[str, Any]) -> AttemptFolder:
    made = folder.new_attempt()
    write_json(made.start_file, {"first_step": 0, "total_steps": 100})
    if outcome:
        write_json(made.outcome_file, outcome)
    for rank, error in errors.items():
        write_json(
            made.error_file(int(rank[1:])), {"rank": int(rank[1:]), "host": "node1", "type": "RuntimeError", **error}
        )
    return made


def test_a_run_that_was_never_started_is_sealed(folder: RunFolder) -> None:
    assert state_of(folder.path).state == "sealed"


def test_the_best_score_is_the_newest_checkpoints_word_and_shown_where_there_is_one(folder: RunFolder) -> None:
    assert "best score" not in describe_run_states([state_of(folder.path)])
    for step, best in ((8, 0.5), (16, 0.75)):
        folder.checkpoint(step).mkdir(parents=True)
        progress = {"step": step, "best_step": step, "best_score": best}
        write_json(folder.checkpoint(step) / "trainer.json", {"progress": progress})
    assert (state_of(folder.path).best_score, state_of(folder.path).best_step) == (0.75, 16)
    assert "0.7500 at 16" in describe_run_states([state_of(folder.path)])
    (folder.checkpoint(16) / "trainer.json").write_text("{")
    assert state_of(folder.path).best_score is None


def test_the_plan_knows_the_total_before_the_ranks_have_loaded(folder: RunFolder) -> None:
    write_json(folder.plan_file, {"steps": {"total": 60}})
    assert state_of(folder.path).total_steps == 60
    write_json(folder.plan_file, {"steps": None})
    assert state_of(folder.path).total_steps is None
    attempt(folder)
    assert state_of(folder.path).total_steps == 100


def test_runs_are_called_by_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    for name, lr in (("0" * 10, 1e-4), ("1" * 10, 2e-4)):
        path = tmp_path / "runs/demo" / name
        path.mkdir(parents=True)
        RunFolder(path).create(make_recipe(train={"lr": lr}))
    states = states_of([], str(tmp_path / "runs"))
    assert [state.to_json()["point"] for state in states] == [{"train.lr": 1e-4}, {"train.lr": 2e-4}]
    table = describe_run_states(states)
    assert "demo/0000000000  lr=1e-4" in table
    (alone,) = states_of(["111"], str(tmp_path / "runs"))
    assert alone.point == {"train.lr": 2e-4}


def test_a_held_lock_means_running_and_a_lock_file_alone_does_not(folder: RunFolder) -> None:
    attempt(folder)
    with folder.lock_file.open("w") as lock:
        assert state_of(folder.path).state == "killed"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state_of(folder.path).state == "running"
    assert state_of(folder.path).state == "killed"


def test_a_started_process_that_has_no_lock_yet_counts_as_running(folder: RunFolder) -> None:
    with attempt(folder).launcher_log.open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert state_of(folder.path).state == "running"


def test_finished_stays_finished_whatever_the_exit_code_was(folder: RunFolder) -> None:
    made = attempt(folder, {"state": "finished", "last_step": 100, "reason": "all steps done"})
    write_json(made.exit_file, {"returncode": 1})  # gloo's abort after all work is done
    state = state_of(folder.path)
    assert (state.state, state.step, state.total_steps) == ("finished", 100, 100)


def test_the_last_attempt_decides_between_stopped_and_failed(folder: RunFolder) -> None:
    attempt(folder, r0={"time": 1.0, "message": "boom"})
    assert state_of(folder.path).state == "failed"
    attempt(folder, {"state": "stopped", "last_step": 40, "reason": "asked to stop"})
    state = state_of(folder.path)
    assert (state.state, state.step, state.attempts, state.cause) == ("stopped", 40, 2, "asked to stop")


def test_the_earliest_error_is_the_cause_and_outweighs_ranks_that_still_saved(folder: RunFolder) -> None:
    outcome = {"state": "stopped", "last_step": 9, "reason": "received SIGTERM"}
    attempt(
        folder,
        outcome,
        r0={"time": 12.5, "message": "connection closed by peer"},
        r3={"time": 9.5, "message": "no room\nat all"},
    )
    state = state_of(folder.path)
    assert state.state == "failed"
    assert state.cause == "rank 3 on node1: RuntimeError: no room; see attempts/001/rank-3.log"


def test_a_users_mistake_keeps_its_whole_text(folder: RunFolder) -> None:
    attempt(folder, r0={"time": 1.0, "message": "rows.csv: no column `text`\n    found: a, b", "user_error": True})
    state = state_of(folder.path)
    assert state.user_error
    assert state.cause == "rows.csv: no column `text`\n    found: a, b"


@pytest.mark.parametrize(
    ("exit", "expected", "words"),
    [
        (None, "killed", "without an error message"),
        ({"returncode": -9}, "killed", "signal 9"),
        ({"returncode": 1}, "failed", "exit code 1"),
        ({"returncode": -15, "killed": True}, "killed", "before it could save"),
    ],
)
def test_silence_is_told_apart_by_how_the_launcher_ended(
    folder: RunFolder, exit: dict[str, Any] | None, expected: str, words: str
) -> None:
    made = attempt(folder)
    if exit:
        write_json(made.exit_file, exit)
    state = state_of(folder.path)
    assert state.state == expected
    assert words in state.cause


def test_progress_is_the_newest_whole_line(folder: RunFolder) -> None:
    attempt(folder)
    lines = [{"kind": "train", "step": step, "total_steps": 5000, "loss": 1 / step} for step in range(1, 3001)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "train", "step": 30'
    folder.metrics_file.write_text(text)
    state = state_of(folder.path)
    assert (state.step, state.total_steps, state.loss) == (3000, 5000, 1 / 3000)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("attempts/001/outcome.json", "[1]"),
        ("attempts/001/outcome.json", '{"last_step": "many"}'),
        ("attempts/001/start.json", '{"first_step": {}, "total_steps": []}'),
        ("attempts/001/start.json", "[" * 100_000),
        ("metrics.jsonl", '{"kind": "train", "step": {}, "loss": "low", "eta_s": "soon"}'),
        ("metrics.jsonl", '{"kind": "train", "step": 1, "loss": {}}'),
        ("checkpoints/step-00000001/trainer.json", "[1]"),
        ("checkpoints/step-00000001/trainer.json", '{"progress": {"best_score": "good"}}'),
        ("checkpoints/step-00000001/trainer.json", '{"progress": 7}'),
    ],
)
def test_a_malformed_run_does_not_hide_the_others(tmp_path: Path, name: str, content: str) -> None:
    good, bad = make_run(tmp_path / "runs/demo/0000000001"), make_run(tmp_path / "runs/demo/0000000002")
    attempt(good, {"state": "finished", "last_step": 5})
    (bad.path / name).parent.mkdir(parents=True, exist_ok=True)
    (bad.path / name).write_text(content)
    states = states_of([], str(tmp_path / "runs"))
    assert [state.id for state in states] == [good.id, bad.id]
    assert f"demo/{good.id}  finished" in describe_run_states(states)


def test_a_run_whose_files_cannot_be_read_says_so(folder: RunFolder) -> None:
    attempt(folder).outcome_file.write_text("[1]")
    (state,) = states_of([], str(folder.path.parent))
    assert state.state == "unreadable"
    assert "its files cannot be read" in describe_run_states([state])
