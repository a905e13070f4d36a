"""Training on a stream: the same curve however often it is cut, with workers and without, on one rank and on two."""

from __future__ import annotations

import json
import signal
from functools import cache, partial
from pathlib import Path

import pytest

from tests.conftest import write_reviews
from tests.integration import harness

pytestmark = pytest.mark.slow

SAVE_EVERY = 5
STEPS = 30  # 2 epochs of 4 blocks and a bit: 30 + 30 + 30 + 10 rows make 3 + 3 + 3 + 1 steps


def write_recipe(folder: Path, tiny_model: Path, workers: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    write_reviews(folder / "train.csv", 100)
    write_reviews(folder / "validation.csv", 20, seed=1)
    recipe = {
        "name": "streamed",
        "task": "text-classification",
        "model": {"path": str(tiny_model)},
        "data": {
            "source": {split: str(folder / f"{split}.csv") for split in ("train", "validation")},
            "streaming": {"buffer": 30},
            "labels": ["neg", "pos"],
            "workers": workers,
            "max_length": 48,
            "augment": {"text": {"delete": 0.2}},
        },
        "tuning": "full",
        "train": {
            "steps": STEPS,
            "global_batch": 12,
            "micro_batch": 3,
            "lr": 1e-2,
            "save_every": f"{SAVE_EVERY} steps",
            "log_every": 1,
        },
        "evaluate": {"report_on": []},
    }
    file = folder / "streamed.yaml"
    file.write_text(json.dumps(recipe))
    return file


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tmp_path_factory):
    @cache
    def trained(workers: int, ranks: int) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(f"{workers}-{ranks}")
        recipe = write_recipe(folder, tiny_model, workers)
        return recipe, harness.run(recipe, folder / "runs", ranks)

    return trained


def test_it_goes_through_epochs_and_leaves_nothing_behind(undisturbed):
    _, folder = undisturbed(0, 1)
    assert sorted(harness.losses(folder)) == list(range(1, STEPS + 1))
    assert sorted(harness.metrics(folder, "validation")) == [5, 10, 15, 20, 25, STEPS]
    assert [harness.metrics(folder)[step]["epoch"] for step in (1, 10, 11, 21)] == [0, 0, 1, 2]
    assert not (folder / "stream").exists()


def test_workers_and_ranks_change_nothing(undisturbed):
    one, two = harness.losses(undisturbed(0, 1)[1]), harness.losses(undisturbed(2, 2)[1])
    assert two == pytest.approx(one, abs=2e-6)


@pytest.mark.parametrize(("workers", "ranks", "cut"), [(0, 1, 13), (2, 2, 22)])
def test_killed_at_any_step(undisturbed, tmp_path, workers, ranks, cut):
    recipe, expected = undisturbed(workers, ranks)
    harness.killed_at(recipe, tmp_path, cut, ranks)
    found = harness.run(recipe, tmp_path, ranks)
    saved = (cut - 1) // SAVE_EVERY * SAVE_EVERY  # the last that was begun; it may not have been on the disk yet
    begun = json.loads((found / "attempts/002/start.json").read_text())["first_step"]
    assert begun in {saved, saved - SAVE_EVERY} - {0}
    assert harness.losses(found) == harness.losses(expected)
    assert harness.weights(found, STEPS) == harness.weights(expected, STEPS)


def test_other_rows_than_those_it_began_with_are_refused(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model)
    harness.run(recipe, tmp_path / "runs", arrange=partial(harness.signal_at, 8, 0, signal.SIGTERM))
    write_reviews(tmp_path / "train.csv", 100, seed=2)
    harness.run(recipe, tmp_path / "runs", expect=2)
    assert "the stream is not the one this run began with" in (tmp_path / "runs/output.log").read_text()


def test_a_fault_in_the_middle_of_the_stream_is_the_users(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model, workers=2)  # which meet it first
    lines = (tmp_path / "train.csv").read_text().splitlines()
    lines[80] = "a strange one,maybe,0"
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    harness.run(recipe, tmp_path / "runs", 2, expect=2)
    said = (tmp_path / "runs/output.log").read_text()
    assert "not one of data.labels" in said
    assert "found: maybe" in said
    assert "Traceback" not in said
