"""Kill a training at any moment, start it again: the same losses from there on and bit-identical final weights."""

from __future__ import annotations

import json
import os
import random
import signal
from functools import cache, partial
from itertools import product
from pathlib import Path

import pytest

from tests.integration import harness

pytestmark = pytest.mark.slow

STEPS = 24  # 3 epochs of 8 steps (96 training rows, global batch 12)
SAVE_EVERY = 4
# For each way to make batches, with and without workers, on one and two ranks: the step after an epoch, and two random ones.
CUTS = [
    (batching, workers, ranks, cut)
    for number, (batching, workers, ranks) in enumerate(product(("bucketed", "plain"), (0, 2), (1, 2)))
    for cut in ((9, 17)[number % 2], *random.Random(number).sample([*range(10, 17), *range(18, STEPS)], 2))
]


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
            "save_every": f"{SAVE_EVERY} steps",
            "log_every": 1,
            **train,
        },
    }
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def trained(tiny_model, reviews, tmp_path_factory):
    """(batching, workers, ranks) -> a recipe, and its finished run that nobody disturbed."""

    @cache
    def undisturbed(batching: str, workers: int, ranks: int) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(f"{batching}-{workers}-{ranks}")
        settings = {"batching": batching, "async_save": IN_BACKGROUND[batching]}
        recipe = write_recipe(folder / "cut.yaml", tiny_model, reviews, **settings)
        text = json.loads(recipe.read_text())
        text["tuning"] = {"method": TUNING[batching]}
        text["data"]["workers"] = workers
        recipe.write_text(json.dumps(text))
        return recipe, harness.run(recipe, folder / "runs", ranks)

    return undisturbed


TUNING = {"bucketed": "full", "plain": "lora"}
IN_BACKGROUND = {"bucketed": True, "plain": False}


@pytest.fixture(params=TUNING)
def undisturbed(request, trained):
    return trained(request.param, 0, 1)


def assert_same(found: Path, expected: Path, steps: int = STEPS) -> None:
    assert harness.losses(found) == harness.losses(expected)
    assert sorted(harness.losses(found)) == list(range(1, steps + 1))
    assert harness.weights(found, steps) == harness.weights(expected, steps)
    strip = ("kind", "attempt", "time")
    for step, record in harness.metrics(expected, "validation").items():
        again = harness.metrics(found, "validation")[step]
        assert {k: v for k, v in again.items() if k not in strip} == {k: v for k, v in record.items() if k not in strip}


@pytest.mark.parametrize(("batching", "workers", "ranks", "cut"), CUTS)
def test_killed_at_any_step(trained, tmp_path, batching, workers, ranks, cut):
    """Equal losses at every step say that the same examples were seen, in the same order."""
    recipe, expected = trained(batching, workers, ranks)
    harness.killed_at(recipe, tmp_path, cut, ranks)
    folder = harness.run(recipe, tmp_path, ranks)
    assert_same(folder, expected)
    saved = (cut - 1) // SAVE_EVERY * SAVE_EVERY  # the last that was begun
    whole = {saved, saved - SAVE_EVERY} if IN_BACKGROUND[batching] else {saved}
    assert json.loads((folder / "attempts/002/start.json").read_text())["first_step"] in whole - {0}


def test_workers_change_nothing(trained):
    assert harness.losses(trained("plain", 2, 2)[1]) == harness.losses(trained("plain", 0, 2)[1])


def test_killed_three_times_in_one_run(undisturbed, tmp_path):
    recipe, expected = undisturbed
    for cut in (6, 12, 18):
        harness.killed_at(recipe, tmp_path, cut)
    assert_same(harness.run(recipe, tmp_path), expected)


def test_asked_to_stop_saves_at_once_and_goes_on_exactly(undisturbed, tmp_path):
    recipe, expected = undisturbed
    folder = harness.run(recipe, tmp_path, arrange=partial(harness.signal_at, 3, 0, signal.SIGTERM))
    outcome = json.loads((folder / "attempts/001/outcome.json").read_text())
    assert outcome["state"] == "stopped"
    assert outcome["reason"] == "received SIGTERM"
    assert outcome["last_step"] == 4  # the one it was about to do
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
    assert f"resuming from step-{STEPS - SAVE_EVERY:08d}" in log
    assert_same(folder, expected)


def stop_while_validating(step: int, rank: int) -> None:
    """The request comes when the validation of `step` has begun."""
    from sft_dist.training import validation
    from sft_dist.training.state import Training

    undisturbed = validation._validate

    def then_validate(t: Training) -> None:
        if t.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        undisturbed(t)

    validation._validate = then_validate


def test_asked_to_stop_while_validating_saves_at_once_and_validates_later(tiny_model, reviews, tmp_path):
    recipe = write_recipe(tmp_path / "cut.yaml", tiny_model, reviews, steps=8, epochs=None)
    text = json.loads(recipe.read_text())
    text["evaluate"] = {"micro_batch": 1}
    text["data"]["split"] = {"validation": 0.3}  # 36 batches
    recipe.write_text(json.dumps(text))
    expected = harness.run(recipe, tmp_path / "undisturbed")
    for step in (4, 8):
        folder = harness.run(recipe, tmp_path / "cut", arrange=partial(stop_while_validating, step))
        attempt = sorted((folder / "attempts").iterdir())[-1]
        outcome = json.loads((attempt / "outcome.json").read_text())
        assert (outcome["state"], outcome["last_step"]) == ("stopped", step)
        assert step not in harness.metrics(folder, "validation")
        assert (folder / f"checkpoints/step-{step:08d}/manifest.json").exists()
    assert_same(harness.run(recipe, tmp_path / "cut"), expected, steps=8)


@pytest.mark.parametrize(
    "shapes",
    [
        [("ddp", 2), ("single", 1), ("ddp", 4)],
        [("ddp", 2), ("zero3", 2), ("fsdp2", 4)],
        [("fsdp2", 2), ("zero1", 1), ("zero2", 2)],
    ],
    ids=lambda shapes: "-".join(f"{name}x{ranks}" for name, ranks in shapes),
)
def test_a_run_goes_on_with_other_ranks_and_another_strategy(trained, tmp_path, shapes):
    """As `sft-dist resume --strategy` does it: the plan names another strategy, the sealed recipe stays."""
    recipe, expected = trained("bucketed", 0, 1)
    curve = harness.losses(expected)
    for last, (strategy, ranks) in zip((7, 15, STEPS), shapes, strict=True):
        for folder in (path.parent for path in tmp_path.glob("*/*/recipe.json")):
            (folder / "plan.json").write_text(json.dumps({"strategy": {"name": strategy}}))
        target = recipe
        if last == 7:
            target = tmp_path / "first.yaml"
            text = json.loads(recipe.read_text())
            text["train"]["strategy"] = strategy
            target.write_text(json.dumps(text))
        elif folders := list(tmp_path.glob("*/*/recipe.json")):
            target = folders[0].parent
        harness.run(target, tmp_path, ranks, arrange=partial(harness.signal_at, last, 0, signal.SIGTERM))
    folder = harness.the_run(tmp_path)
    assert [
        json.loads((one / "start.json").read_text())["world_size"] for one in sorted((folder / "attempts").iterdir())
    ] == [ranks for _, ranks in shapes]
    found = harness.losses(folder)
    assert sorted(found) == sorted(curve)
    assert found == pytest.approx(curve, abs=1e-5)
