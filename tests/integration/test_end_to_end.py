"""The whole path as a user walks it, through the real command line and the real `accelerate launch`."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "text-classification" / "quickstart.yaml"


def command(where: Path, *words: str, stdin: str | None = None, expect: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(where / "home"), "HF_TOKEN": "canary-token"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=where, env=environment, input=stdin, capture_output=True, text=True
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def place(tiny_model, reviews, tmp_path_factory):
    """A user's folder with one recipe of three epochs on the tiny model."""
    where = tmp_path_factory.mktemp("user")
    (where / "home").mkdir()
    recipe = {
        "task": "text-classification",
        "model": {"path": str(tiny_model)},
        "data": {"source": str(reviews), "max_length": 48},
        "tuning": "full",
        "train": {
            "epochs": 3,
            "global_batch": 16,
            "micro_batch": 8,
            "lr": 2e-3,
            "log_every": 2,
            "save_every": "1 epoch",
        },
    }
    (where / "tiny.yaml").write_text(json.dumps(recipe))
    return where


@pytest.fixture(scope="module")
def trained(place):
    """The recipe's run, trained by two processes."""
    done = command(place, "launch", "run", "tiny.yaml")
    (folder,) = (place / "runs" / "tiny").iterdir()
    return folder, done


def test_run_trains_in_two_processes_and_shows_how_it_goes(trained):
    folder, done = trained
    assert json.loads((folder / "attempts/001/start.json").read_text())["world_size"] == 2
    assert json.loads((folder / "attempts/001/outcome.json").read_text())["state"] == "finished"
    assert re.search(r"step 18/18  loss 0\.\d+", done.stderr)
    assert "finished at step 18/18" in done.stderr
    assert (folder / "attempts/001/rank-1.log").exists()


def test_the_folder_is_private_and_nothing_is_written_elsewhere(place, trained):
    folder, _ = trained
    for path in (folder, folder / "checkpoints", folder / "attempts"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    for path in folder.rglob("*"):
        assert not path.stat().st_mode & 0o077, path
    assert {path.name for path in place.iterdir()} <= {"home", "tiny.yaml", "runs"}
    written = [path for path in (place / "home").rglob("*") if path.is_file()]
    assert written == []


def test_a_token_in_the_environment_lands_nowhere(trained):
    folder, _ = trained
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"canary-token" not in path.read_bytes(), path


def test_running_again_trains_nothing(place, trained):
    folder, _ = trained
    before = (folder / "metrics.jsonl").read_bytes()
    assert "already finished" in command(place, "launch", "run", "tiny.yaml").stderr
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in (folder / "attempts").iterdir()] == ["001"]


def test_status_and_logs_tell_of_it(place, trained):
    folder, _ = trained
    (state,) = json.loads(command(place, "launch", "status", "--json").stdout)
    assert (state["id"], state["state"], state["step"]) == (folder.name, "finished", 18)
    assert "checkpoint saved" in command(place, "launch", "logs", folder.name[:5]).stdout
    assert "rank 1" not in command(place, "launch", "logs", folder.name, "--rank", "0").stdout


@pytest.mark.usefixtures("warm_python")
def test_eval_chooses_on_validation_tests_once_and_exports(place, trained):
    folder, _ = trained
    board = json.loads(command(place, "launch", "eval", "tiny.yaml", "--json").stdout)
    validation = {row["step"]: row["validation"]["accuracy"] for row in board["rows"]}
    assert set(validation) == {6, 12, 18}
    assert validation[board["winner"]["step"]] == max(validation.values())
    assert [path.name for path in (folder / "evaluation").glob("*.test.json")] == [
        f"step-{board['winner']['step']:08d}.test.json"
    ]
    assert (folder / "export" / "model.safetensors").exists()
    failed = command(place, "launch", "eval", "tiny.yaml", "--require", "accuracy=1.01", expect=1)
    assert "accuracy" in failed.stderr
    assert "1.01" in failed.stderr
    said = command(place, "launch", "predict", str(folder), "--json", stdin="superb film\nawful film\n").stdout
    assert [json.loads(line)["text"] for line in said.splitlines()] == ["superb film", "awful film"]


def test_a_run_folder_runs_without_the_command_and_from_anywhere(place, trained, tmp_path):
    """`run.sh` of a copied run folder, started over: the same curve."""
    import shutil

    folder, _ = trained
    copy = tmp_path / folder.name
    copy.mkdir()
    for name in ("recipe.json", "plan.json", "run.sh", "source"):
        source = folder / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy / name)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(["bash", str(copy / "run.sh")], cwd="/", env=environment, check=True, capture_output=True)
    assert losses(copy) == losses(folder)


@pytest.mark.usefixtures("warm_python")
def test_a_mistake_found_while_training_is_the_users_and_keeps_its_words(place, trained):
    done = command(
        place, "launch", "run", "tiny.yaml", "model.config.hiden_dropout_prob=0.1", "--runs", "wrong", expect=2
    )
    assert "did you mean `hidden_dropout_prob`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_replay_has_the_same_curve_to_the_last_bit(place, trained):
    """After the tests above, which expect one run."""
    folder, _ = trained
    done = command(place, "launch", "replay", folder.name, "--json")
    difference = json.loads(done.stdout)
    assert difference["identical_curve"], difference["curves"]
    assert difference["curves"]["train"]["num_steps"] == len(losses(folder))
    assert not any(section["differences"] or section["unrecorded"] for section in difference["sections"].values())
    assert losses(folder.with_name(f"{folder.name}-2")) == losses(folder)
    assert "the curve is reproduced" in done.stderr


@pytest.mark.long
def test_the_quickstart_learns_real_reviews(tmp_path):
    """The quickstart's recipe on a third of its rows: guessing gives 0.5, this small run at least 0.65 on test."""
    (tmp_path / "home").mkdir()
    less = ["data.limit=1500", "train.epochs=2"]
    command(tmp_path, "launch", "run", str(QUICKSTART), *less)
    done = command(tmp_path, "launch", "eval", str(QUICKSTART), *less, "--require", "accuracy=0.65", "--json")
    board = json.loads(done.stdout)
    assert board["winner"]["test"]["accuracy"] >= 0.65
    assert len(board["rows"]) == 4
    card = (Path(board["export"]) / "README.md").read_text()
    assert "movie-reviews" in card


def losses(folder: Path) -> dict[int, float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}
