"""A search with real training: a trial that was paused at rungs and promoted is the run that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.search.best import show_best
from launch.search.definition import read_definition
from launch.search.study import Study
from sft_dist.recipe.files import read_json
from tests.integration import harness
from tests.launch.conftest import ROOT

pytestmark = pytest.mark.slow

STEPS = 8


def write_recipe(path: Path, tiny_model: Path, reviews: Path) -> Path:
    recipe = {
        "name": "searched",
        "task": "text-classification",
        "model": {"path": str(tiny_model)},
        "data": {"source": str(reviews), "max_length": 48},
        "tuning": "full",
        "train": {
            "steps": STEPS, "global_batch": 12, "lr": 1e-3, "schedule": "cosine", "warmup": "25%",
            "save_every": "4 steps", "eval_every": "2 steps", "log_every": 1,
        },
        "search": {
            "space": {"train.lr": {"choice": [1e-4, 3e-3]}}, "sampler": "grid", "metric": "loss",
            "pruning": {"name": "asha", "eta": 2, "first": "2 steps"},
        },
    }  # fmt: skip
    path.write_text(json.dumps(recipe))
    return path


def test_a_promoted_run_equals_an_undisturbed_one_bit_for_bit(tiny_model, reviews, tmp_path):
    """The controller is killed once on the way; the trials save and are resumed."""
    recipe, runs = write_recipe(tmp_path / "searched.yaml", tiny_model, reviews), tmp_path / "runs"
    definition = read_definition(str(recipe), [], runs)
    start_search(recipe, runs, kill_at="paused at step 2")
    assert start_search(recipe, runs) == 0

    trials = Study.read(definition.folder, definition.space).trials()
    (finished,) = [trial for trial in trials if trial.state == "finished"]
    assert [trial.rungs for trial in trials] == [(2, 4, STEPS)] * 2
    assert len(trials) == 2
    folder = definition.runs / finished.run
    outcomes = [read_json(path) for path in sorted(folder.glob("attempts/*/outcome.json"))]
    assert [outcome["last_step"] for outcome in outcomes] == [2, 4, STEPS]
    assert [outcome["state"] for outcome in outcomes] == ["stopped", "stopped", "finished"]

    best = tmp_path / "best.yaml"
    show_best(str(recipe), [], runs, best)
    undisturbed = harness.run(best, tmp_path / "elsewhere")
    assert undisturbed.name == finished.run
    assert harness.losses(folder) == harness.losses(undisturbed)
    assert harness.weights(folder, STEPS) == harness.weights(undisturbed, STEPS)


def start_search(recipe: Path, runs: Path, kill_at: str = "") -> int:
    """Runs the command; kills it, as a machine might, once it says `kill_at`."""
    command = [sys.executable, "-m", "launch", "search", str(recipe), "--runs", str(runs), "--processes", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr
        said = []
        for line in process.stderr:
            said.append(line)
            if kill_at and kill_at in line:
                process.send_signal(signal.SIGKILL)
                return process.wait()
        code = process.wait()
    assert code == 0, "".join(said)
    return code
