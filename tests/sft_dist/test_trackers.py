"""Trackers: the real libraries where they are installed, and what happens when one fails."""

from __future__ import annotations

import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState

from sft_dist import trackers
from sft_dist.recipe.files import read_json
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.run.locks import acquire
from sft_dist.trackers import SafeTracker, hyperparameters, mlflow_uri, track_sweep, trackers_of
from tests.launch.conftest import make_recipe

SECRET = "0123456789canary0123456789canary01234567"


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    PartialState()
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "TRACKIO_DIR", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)


def make_run(tmp_path: Path, *tracking: Any) -> tuple[Recipe, RunFolder]:
    recipe = make_recipe(train={"tracking": list(tracking)}, data={"source": "https://user:hidden@host/rows.csv"})
    folder = RunFolder(tmp_path / "runs/demo/0123456789")
    folder.create(recipe, durable=False)
    folder.plan_file.write_text('{"point": {"train.lr": 0.001}}')
    return recipe, folder


def log_steps(recipe: Recipe, folder: RunFolder, *steps: int) -> None:
    """As a trainer does: an attempt that logs these steps."""
    for tracker in trackers_of(recipe, folder):
        tracker.start()
        assert tracker.inner is not None
        tracker.store_init_configuration(hyperparameters(recipe))
        for step in steps:
            tracker.log({"train/loss": 1 / step}, step=step)
        tracker.finish()


def board_of(folder: RunFolder) -> dict[str, Any]:
    rows = [
        {"run": folder.id, "step": 4, "validation": {"accuracy": 0.75, "confusion_matrix": [[1]]}},
        {"run": folder.id, "step": 2, "validation": {"accuracy": 0.5, "confusion_matrix": [[1]]}},
        {"run": "ffffffffff", "step": 9, "validation": {"accuracy": 0.25}},
    ]
    (folder.path / "leaderboard.md").write_text("| run | accuracy |\n")
    return {"rows": rows, "winner": {"run": folder.id, "step": 4, **rows[0], "test": {"accuracy": 0.7}}}


def train_resume_and_sweep(tmp_path: Path, tracker: Any) -> RunFolder:
    recipe, folder = make_run(tmp_path, tracker)
    log_steps(recipe, folder, 1, 2)
    log_steps(recipe, folder, 3, 4)
    for _ in range(2):  # the second time there is nothing new
        track_sweep([folder], board_of(folder), folder.path)
    return folder


LOSSES = {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3), 4: 0.25}
ACCURACIES = {2: 0.5, 4: 0.75}


# ── the real libraries ──────────────────────────────────────────────────────────────────────────────────────────────
def test_tensorboard_has_all_attempts_and_the_sweep(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = train_resume_and_sweep(tmp_path, "tensorboard")
    events = accumulator.EventAccumulator(str(folder.path / "tracking"))
    events.Reload()
    scalars = {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}
    assert scalars["train/loss"] == LOSSES
    assert scalars["evaluation/accuracy"] == ACCURACIES
    assert len(events.Scalars("test/accuracy")) == 1
    (text,) = events.Tensors("leaderboard/text_summary")
    assert b"| run | accuracy |" in text.tensor_proto.string_val[0]


def test_mlflow_has_one_run_of_all_attempts_in_a_database_beside_the_runs(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    folder = train_resume_and_sweep(tmp_path, "mlflow")
    assert (folder.path.parent / "mlflow.db").is_file()
    client = mlflow.MlflowClient()
    (experiment,) = mlflow.search_experiments(filter_string="name = 'demo'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == read_json(folder.trackers_file)["mlflow"]
    history = {
        name: {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    assert history["train/loss"] == LOSSES
    assert history["evaluation/accuracy"] == ACCURACIES
    assert (run.data.params["train.lr"], run.info.run_name) == ("0.001", "lr=1e-3 0123456789")
    assert run.data.tags["leaderboard"] == str(folder.path / "leaderboard.md")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["leaderboard.md"]
    assert "hidden" not in json.dumps(run.data.params)


def test_wandb_is_offline_in_the_run_folder_and_keeps_its_id(tmp_path):
    pytest.importorskip("wandb")
    folder = train_resume_and_sweep(tmp_path, {"name": "wandb", "project": "mine"})
    identity = read_json(folder.trackers_file)["wandb"]
    files = sorted((folder.path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 3, "two attempts and one sweep"
    assert {file.name for file in files} == {f"run-{identity}.wandb"}
    content = b"".join(file.read_bytes() for file in files)
    for text in (
        b"train/loss",
        b"evaluation/accuracy",
        b"test/accuracy",
        b"leaderboard",
        b"mine",
        b"lr=1e-3 0123456789",
    ):
        assert text in content, text
    files = [file for file in folder.path.rglob("*") if file.is_file() and file != folder.recipe_file]
    assert not [file for file in files for secret in (SECRET, "user:hidden") if secret.encode() in file.read_bytes()]


def test_trackio_is_beside_the_runs_and_goes_on_with_its_run(tmp_path):
    if find_spec("trackio") is None:  # not imported yet: its folder is read when it is
        pytest.skip("trackio is not installed")
    folder = train_resume_and_sweep(tmp_path, "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    assert any((folder.path.parent / "trackio").iterdir())
    name = read_json(folder.trackers_file)["trackio"]
    assert SQLiteStorage.get_runs("demo") == [name]
    logged = SQLiteStorage.get_logs("demo", name)
    assert {entry["step"]: entry["train/loss"] for entry in logged if "train/loss" in entry} == LOSSES
    scores = {entry["step"]: entry["evaluation/accuracy"] for entry in logged if "evaluation/accuracy" in entry}
    assert scores == ACCURACIES


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────────
class Broken(trackers.GeneralTracker):
    """Fails as a server that is gone does, from the given call on."""

    name = "broken"
    requires_logging_directory = False
    tracker = None

    def __init__(self, works_for: int) -> None:
        super().__init__()
        self.works_for, self.calls = works_for, 0

    def start(self) -> None:
        self._call()

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self._call()

    def _call(self) -> None:
        self.calls += 1
        if self.calls > self.works_for:
            raise ConnectionError("https://user:hidden@host does not answer")


@pytest.mark.parametrize("works_for", [0, 1, 3])
def test_a_tracker_that_fails_is_named_once_and_asked_no_more(works_for, caplog):
    broken = Broken(works_for)
    tracker = SafeTracker("broken", lambda: broken)
    with caplog.at_level(logging.WARNING):
        tracker.start()
        for step in range(5):
            tracker.log({"train/loss": 1.0}, step=step)
        tracker.finish()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == "broken is switched off: ConnectionError: https://user:***@host does not answer"
    assert broken.calls == works_for + 1


def test_wandb_without_a_server_logs_offline_and_says_how_to_upload(tmp_path, monkeypatch, caplog):
    modes = []

    def start(tracker: Any) -> None:
        modes.append(tracker.init_kwargs.get("mode"))
        if modes[-1] != "offline":
            raise ConnectionError("no network")

    service = SimpleNamespace(teardown=lambda: modes.append("teardown"))  # else the id is in use
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.setattr(trackers.WandBTracker, "start", start)
    tracker = trackers._OfflineFallback("demo", dir="/runs/demo/1")
    with caplog.at_level(logging.WARNING):
        tracker.start()
    assert modes == [None, "teardown", "offline"]
    assert "wandb sync /runs/demo/1/wandb/offline-run-*" in caplog.text


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_sweep_survives_every_tracker_that_cannot_be_started_and_tries_again(tmp_path, monkeypatch, caplog, name):
    _, folder = make_run(tmp_path, name)
    monkeypatch.setattr(trackers, "_MAKERS", {name: lambda *_: Broken(0)})
    for _ in range(2):
        track_sweep([folder], board_of(folder), folder.path)
    assert caplog.text.count(f"{name} is switched off") == 2
    assert not folder.trackers_file.exists()


def test_a_run_that_is_being_trained_is_left_to_its_trainer(tmp_path, monkeypatch):
    _, folder = make_run(tmp_path, "tensorboard")
    monkeypatch.setattr(trackers, "trackers_of", lambda *_: pytest.fail("a tracker was started"))
    with folder.lock_file.open("w") as file:
        acquire(file.fileno())
        track_sweep([folder], board_of(folder), folder.path)


# ── names and places ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("uri", "environment", "place"),
    [
        (None, {}, "sqlite:////runs/demo/mlflow.db"),
        (None, {"MLFLOW_TRACKING_URI": "https://host"}, "https://host"),
        ("sqlite:///other.db", {"MLFLOW_TRACKING_URI": "https://host"}, "sqlite:////runs/demo/other.db"),
        ("sqlite:////data/all.db", {}, "sqlite:////data/all.db"),
        ("postgresql://host/runs", {}, "postgresql://host/runs"),
    ],
)
def test_where_mlflow_keeps_its_runs(uri, environment, place):
    assert mlflow_uri(uri, environment, Path("/runs/demo")) == place


def test_hyperparameters_are_flat_and_without_passwords(tmp_path):
    recipe, _ = make_run(tmp_path, "tensorboard")
    values = hyperparameters(recipe)
    assert values["train.lr"] == 1e-3
    assert "hidden" not in json.dumps(values)
    assert all(isinstance(value, int | float | str | bool | None) for value in values.values())


def test_a_sweep_of_runs_without_trackers_starts_nothing_for_them(tmp_path, monkeypatch):
    """Where srun sets the variables of MPI, Accelerate's state would wait for other processes."""
    monkeypatch.setattr(trackers, "PartialState", lambda: pytest.fail("was started"))
    _, folder = make_run(tmp_path)
    track_sweep([folder], board_of(folder), folder.path)
