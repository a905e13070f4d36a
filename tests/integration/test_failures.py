"""Trainings that fail, for real: what they say, what they leave behind, and that the other ranks are no distraction."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sft_dist.recipe.run_folder import RunFolder
from sft_dist.recipe.verdict import Ended, decide, verdict_of
from tests.integration import harness

pytestmark = pytest.mark.slow

ROW = 40


@pytest.fixture(scope="module")
def poisoned(reviews, tmp_path_factory):
    """Numbers to predict, one of which is so large that its squared error is infinite."""
    lines = reviews.read_text().splitlines()
    lines[ROW + 1] = lines[ROW + 1].rsplit(",", 1)[0] + ",1e30"
    data = tmp_path_factory.mktemp("poisoned") / "reviews.csv"
    data.write_text("\n".join(lines) + "\n")
    return data


def write_recipe(path: Path, model: Path, reviews: Path, numbers: bool = False, **train) -> Path:
    recipe = {
        "name": "fails",
        "task": "text-classification",
        "model": {"path": str(model)},
        "data": {"source": str(reviews), "max_length": 48, "split": {"validation": 0, "test": 0}},
        "train": {
            "epochs": 2, "global_batch": 12, "micro_batch": 3, "lr": 1e-3, "log_every": 1, "save_every": "1 steps", **train,
        },
        "evaluate": {"report_on": []},
        "tuning": "full",
    }  # fmt: skip
    if numbers:
        recipe["task"] = {"type": "text-classification", "problem": "regression"}
        recipe["data"]["columns"] = {"label": "score"}
    path.write_text(json.dumps(recipe))
    return path


def errors(folder: Path, attempt: int = 1) -> list[dict]:
    files = sorted((folder / f"attempts/{attempt:03d}").glob("rank-*.error.json"))
    return [json.loads(file.read_text()) for file in files]


def verdict(folder: Path):
    run = RunFolder(folder)
    return verdict_of(run, run.all_attempts()[-1])


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(file.parent.name[5:]) for file in (folder / "checkpoints").glob("step-*/manifest.json"))


def skipped(folder: Path) -> dict[int, dict]:
    return {step: {"loss": one["loss"], "why": one["why"]} for step, one in harness.metrics(folder, "skipped").items()}


# ── losses ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_poisoned_example_stops_before_the_save_and_is_named(tiny_model, poisoned, tmp_path):
    recipe = write_recipe(tmp_path / "fails.yaml", tiny_model, poisoned, numbers=True)
    folder = harness.run(recipe, tmp_path / "runs", world_size=2, expect=1)
    first, second = errors(folder)
    assert first["message"] == second["message"]
    step, message = first["step"] + 1, first["message"]
    said = re.fullmatch(
        rf"the loss of step {step} is inf; rank ([01]) has inf an example on rows \[(.*)\], the worst of 4 micro-batches",
        message,
    )
    assert said, message
    rows = [int(row) for row in said[2].split(", ")]
    assert ROW in rows
    assert len(rows) <= 3
    assert max(saved_steps(folder), default=0) == step - 1
    found = verdict(folder)
    assert found.cause == "not a number"
    assert message in found.line
    assert decide([Ended(found, True)]).action == "stop"
    assert "Traceback" not in (tmp_path / "runs/output.log").read_text()


def test_skipping_leaves_out_the_step_and_is_the_same_after_a_restart(tiny_model, poisoned, tmp_path):
    recipe = write_recipe(tmp_path / "fails.yaml", tiny_model, poisoned, numbers=True, on_bad_loss="skip")
    expected = harness.run(recipe, tmp_path / "expected", world_size=2)
    left_out = skipped(expected)
    assert len(left_out) == 2  # the row comes once an epoch
    assert all(str(ROW) in one["why"] and one["loss"] is None for one in left_out.values())
    curve = harness.losses(expected)
    assert [step for step, loss in curve.items() if loss is None] == list(left_out)

    processes = harness.start(recipe, tmp_path / "cut", world_size=2)
    harness.wait_for_step(tmp_path / "cut", min(left_out), processes)
    harness.kill(processes)
    found = harness.run(recipe, tmp_path / "cut", world_size=2)
    assert skipped(found) == left_out
    assert harness.losses(found) == curve
    assert harness.weights(found, max(curve)) == harness.weights(expected, max(curve))


def test_many_bad_steps_in_a_row_stop_even_when_they_may_be_skipped(tiny_model, reviews, tmp_path):
    recipe = write_recipe(
        tmp_path / "fails.yaml", tiny_model, reviews, on_bad_loss="skip", max_loss=1e-6, steps=40, epochs=None
    )
    folder = harness.run(recipe, tmp_path / "runs", expect=1)
    (error,) = errors(folder)
    assert error["message"].startswith("the last 20 steps up to step 20 were all left out; the loss of step 20 is 0.")
    assert "above train.max_loss 1e-06" in error["message"]
    assert verdict(folder).cause == "not a number"


def test_weights_that_an_update_has_ruined_are_not_saved(tiny_model, poisoned, tmp_path):
    """The loss is known before the update, so that of the last step would never be noticed."""
    data = tmp_path / "reviews.csv"
    data.write_text(poisoned.read_text().replace(",1e30", ",1e6"))  # a large gradient, and a loss that is a number
    one_step = {"steps": 1, "epochs": None, "global_batch": 120, "micro_batch": 30}
    recipe = write_recipe(
        tmp_path / "fails.yaml", tiny_model, data, numbers=True, lr=3e38, clip_norm=None, optimizer="sgd", **one_step
    )
    folder = harness.run(recipe, tmp_path / "runs", world_size=2, expect=1)
    assert saved_steps(folder) == []
    assert [error["type"] for error in errors(folder)] == ["TrainingError", "TrainingError"]
    assert "step 1 has made" in errors(folder)[0]["message"]
    assert verdict(folder).cause == "not a number"
