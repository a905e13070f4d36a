"""A run that a search pauses at rungs and promotes is the run that nobody paused, bit for bit."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest

from sft_dist.recipe.files import read_json
from sft_dist.run.attempt import LAST_STEP
from tests.integration import harness

pytestmark = pytest.mark.slow

STEPS = 8


def write_recipe(path: Path, tiny_model: Path, reviews: Path) -> Path:
    """Validates at the rungs, and saves at some of them only because they are rungs."""
    recipe = {
        "name": "searched",
        "task": "text-classification",
        "model": {"path": str(tiny_model)},
        "data": {"source": str(reviews), "max_length": 48},
        "tuning": "full",
        "train": {
            "steps": STEPS, "global_batch": 12, "lr": 1e-3, "schedule": "cosine", "warmup": "25%",
            "save_every": "4 steps", "log_every": 1,
        },
    }  # fmt: skip
    path.write_text(json.dumps(recipe))
    return path


def pause_at(last_step: str, rank: int) -> None:
    os.environ[LAST_STEP] = last_step


def test_a_promoted_run_equals_an_undisturbed_one_bit_for_bit(tiny_model, reviews, tmp_path):
    recipe = write_recipe(tmp_path / "searched.yaml", tiny_model, reviews)
    undisturbed = harness.run(recipe, tmp_path / "undisturbed")
    for last_step in ("2", "2", "4", "7", ""):  # the second ends at once: it is at its rung
        folder = harness.run(recipe, tmp_path / "promoted", arrange=partial(pause_at, last_step))
    assert folder.name == undisturbed.name
    outcomes = [read_json(path) for path in sorted(folder.glob("attempts/*/outcome.json"))]
    assert [outcome["last_step"] for outcome in outcomes] == [2, 2, 4, 7, STEPS]
    assert [outcome["state"] for outcome in outcomes] == ["stopped"] * 4 + ["finished"]
    assert outcomes[0]["reason"] == "paused at step 2"
    assert harness.losses(folder) == harness.losses(undisturbed)
    assert harness.weights(folder, STEPS) == harness.weights(undisturbed, STEPS)
