"""Kill a training at any moment, start it again: the same losses from there on and bit-identical final weights."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.integration import harness

pytestmark = pytest.mark.slow

STEPS = 24  # 3 epochs of 8 steps (96 training rows, global batch 12)


def write_recipe(path: Path, tiny_model: Path, reviews: Path, **train) -> Path:
    recipe = {
        "name": "cut",
        "task": "text-classification",
        "model": {"path": str(tiny_model)},  # dropout 0.1 throughout
        "data": {"source": str(reviews), "max_length": 48},
        "tuning": {"method": "full"},
        "train": {
            "epochs": 3,
            "global_batch": 12,
            "micro_batch": 3,
            "lr": 1e-3,
            "warmup": "10%",
            "schedule": "cosine",
            "save_every": "5 steps",
            "log_every": 1,
            **train,
        },
    }
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module", params=["full", "lora"])
def undisturbed(request, tiny_model, reviews, tmp_path_factory):
    """A recipe and its finished run that nobody disturbed."""
    folder = tmp_path_factory.mktemp(f"undisturbed-{request.param}")
    batching = {"full": "bucketed", "lora": "plain"}[request.param]
    recipe = write_recipe(folder / "cut.yaml", tiny_model, reviews, batching=batching)
    text = json.loads(recipe.read_text())
    text["tuning"] = {"method": request.param}
    recipe.write_text(json.dumps(text))
    return recipe, harness.run(recipe, folder / "runs")


def assert_same(found: Path, expected: Path) -> None:
    assert harness.losses(found) == harness.losses(expected)
    assert sorted(harness.losses(found)) == list(range(1, STEPS + 1))
    assert harness.weights(found, STEPS) == harness.weights(expected, STEPS)
    strip = ("kind", "attempt", "time")
    for step, record in harness.metrics(expected, "validation").items():
        again = harness.metrics(found, "validation")[step]
        assert {k: v for k, v in again.items() if k not in strip} == {k: v for k, v in record.items() if k not in strip}


@pytest.mark.parametrize("cut", [1, 4, 5, 8, 11, 13, 16, 19, 22, 23])
def test_killed_at_a_step_one_process(undisturbed, tmp_path, cut):
    recipe, expected = undisturbed
    processes = harness.start(recipe, tmp_path)
    harness.wait_for_step(tmp_path, cut, processes)
    harness.kill(processes)
    folder = harness.run(recipe, tmp_path)
    assert_same(folder, expected)


def test_killed_three_times_in_one_run(undisturbed, tmp_path):
    recipe, expected = undisturbed
    for cut in (6, 12, 18):
        processes = harness.start(recipe, tmp_path)
        harness.wait_for_step(tmp_path, cut, processes)
        harness.kill(processes)
    assert_same(harness.run(recipe, tmp_path), expected)


def test_asked_to_stop_saves_at_once_and_goes_on_exactly(undisturbed, tmp_path):
    recipe, expected = undisturbed
    processes = harness.start(recipe, tmp_path)
    harness.wait_for_step(tmp_path, 1, processes)
    os.kill(processes[0].pid, signal.SIGTERM)
    harness.finish(processes, tmp_path)
    folder = harness.the_run(tmp_path)
    outcome = json.loads((folder / "attempts/001/outcome.json").read_text())
    assert outcome["state"] == "stopped"
    assert outcome["reason"] == "received SIGTERM"
    assert 0 < outcome["last_step"] < STEPS
    assert (folder / f"checkpoints/step-{outcome['last_step']:08d}/manifest.json").exists()
    assert_same(harness.run(recipe, tmp_path), expected)


def test_a_damaged_newest_checkpoint_is_named_and_the_older_one_used(undisturbed, tmp_path):
    recipe, expected = undisturbed
    folder = harness.run(recipe, tmp_path)
    newest = folder / f"checkpoints/step-{STEPS:08d}/state/rank-00000.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    harness.run(recipe, tmp_path)
    log = (folder / "attempts/002/rank-0.log").read_text()
    assert f"step-{STEPS:08d} is damaged: state/rank-00000.safetensors: content changed" in log
    assert "going on from step-00000020" in log
    assert_same(folder, expected)


@pytest.mark.parametrize("cut", [3, 9, 17])
def test_killed_with_two_ranks(tiny_model, reviews, tmp_path, tmp_path_factory, cut):
    recipe = write_recipe(tmp_path / "cut.yaml", tiny_model, reviews)
    expected = harness.run(recipe, tmp_path / "expected", world_size=2)
    processes = harness.start(recipe, tmp_path / "cut", world_size=2)
    harness.wait_for_step(tmp_path / "cut", cut, processes)
    harness.kill(processes)
    assert_same(harness.run(recipe, tmp_path / "cut", world_size=2), expected)
