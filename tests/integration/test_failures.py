"""Trainings that fail, for real: what they say, what they leave behind, and that the other ranks are no distraction."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from functools import partial
from pathlib import Path

import pytest

import sft_dist
from sft_dist.recipe.load import read, validate
from sft_dist.run.causes import classify_attempt
from sft_dist.run.folder import RunFolder
from sft_dist.run.requeue_policy import EndedAttempt, decide
from tests.conftest import write_reviews
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
    return classify_attempt(run, run.all_attempts()[-1])


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
    assert decide([EndedAttempt(found, True)]).action == "stop"
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
    assert error["message"].startswith("the last 20 steps, up to step 20, were all skipped; the loss of step 20 is 0.")
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
    assert "step 1 or earlier produced NaN or infinity in" in errors(folder)[0]["message"]
    assert verdict(folder).cause == "not a number"


def test_a_gradient_that_is_no_number_is_traced_to_its_rows_though_the_loss_is_fine(tiny_model, reviews, tmp_path):
    recipe = write_recipe(tmp_path / "fails.yaml", tiny_model, reviews)
    folder = harness.run(recipe, tmp_path / "runs", world_size=2, expect=1, arrange=_bad_gradient)
    step = errors(folder)[0]["step"] + 1
    message = errors(folder)[0]["message"]
    assert message.startswith(f"step {step}: the gradient norm is nan although the loss is 0.")
    said = re.search(r"; it comes from rank [01], rows \[(.*)\], 1 of 4 micro-batches$", message)
    assert said, message
    assert str(ROW) in said[1].split(", ")
    assert max(saved_steps(folder), default=0) == step - 1
    assert verdict(folder).cause == "not a number"


def _bad_gradient(rank: int) -> None:
    """A loss with the right value whose gradient is NaN (0 x infinity), for one row."""
    from sft_dist.tasks.text_classification import TextClassification

    collate, forward = TextClassification.collate, TextClassification.forward
    batch: list[int] = []

    def noting(self, rows, tokenizer, rngs):
        batch[:] = [row["row"] for row in rows]
        return collate(self, rows, tokenizer, rngs)

    def poisoned(self, model, inputs):
        found = forward(self, model, inputs)
        return found + ((found - found.detach()).abs() ** 0.5).sum() if ROW in batch else found

    TextClassification.collate, TextClassification.forward = noting, poisoned


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_out_of_memory_says_the_largest_batch_and_what_to_change(tiny_model, tmp_path):
    data = write_reviews(tmp_path / "many.csv", 4000)
    large = {"global_batch": 4000, "micro_batch": 2000, "steps": 2, "epochs": None}
    recipe = write_recipe(tmp_path / "fails.yaml", tiny_model, data, **large)
    folder = harness.run(recipe, tmp_path / "runs", expect=1, arrange=_little_memory)
    (error,) = errors(folder)
    assert error["type"] == "OutOfMemory"
    assert re.search(
        r"is out of memory \(step 1, training\); rank 0's largest micro-batch has 2000 examples, the longest of \d+ tokens",
        error["message"],
    )
    assert "To make it fit: set train.micro_batch=1000 (" in error["message"]
    assert "DefaultCPUAllocator" in error["traceback"]
    assert verdict(folder).cause == "out of memory"
    assert "Traceback" not in (tmp_path / "runs/output.log").read_text()


def _little_memory(rank: int) -> None:
    """Room for the model and for small batches."""
    used_kb = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    limit = used_kb * 1024 + 250 * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("workers", [0, 1])
def test_an_example_that_cannot_be_used_is_named(tiny_model, reviews, tmp_path, workers):
    recipe = write_recipe(tmp_path / "fails.yaml", tiny_model, reviews)
    text = json.loads(recipe.read_text())
    text["data"]["workers"] = workers
    recipe.write_text(json.dumps(text))
    folder = harness.run(recipe, tmp_path / "runs", world_size=2, expect=1, arrange=_unusable_row)
    found = verdict(folder)
    assert found.cause == "data"
    assert f"DataError: row {ROW} of the train split: " in found.line
    assert f"rank {found.rank} on " in found.line  # and not the other rank, which lost its connection


def _unusable_row(rank: int) -> None:
    """In the examples themselves, so that worker processes have it too."""
    from sft_dist.tasks.text_classification import TextClassification

    collate = TextClassification.collate

    def broken(self, rows, tokenizer, rngs):
        for row in rows:
            if row["row"] == ROW:
                row["input_ids"][0] = "no number"
        return collate(self, rows, tokenizer, rngs)

    TextClassification.collate = broken


# ── agreement ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_another_recipe_on_one_rank_is_refused_at_the_start(tiny_model, reviews, tmp_path):
    """Each rank has its own working folder, and `fails.yaml` is a different file in each."""
    for rank, lr in enumerate((1e-3, 2e-3)):
        (tmp_path / f"rank-{rank}").mkdir()
        write_recipe(tmp_path / f"rank-{rank}/fails.yaml", tiny_model, reviews, lr=lr)
    arrange = partial(_own_folder, tmp_path)
    processes = harness.start(Path("fails.yaml"), tmp_path / "runs", 2, arrange)
    harness.finish(processes, tmp_path / "runs", expect=2)
    (folder,) = (path.parent.parent for path in (tmp_path / "runs").glob("*/*/attempts/001"))
    messages = [error["message"] for error in errors(folder)]
    assert len(messages) == 2
    assert re.search(r"recipe: \w+ on rank 0 \(.+\); \w+ on rank 1 \(.+\)", messages[0])
    assert "rows" not in messages[0]
    assert verdict(folder).cause == "user error"
    assert "the ranks were started with different inputs" in (tmp_path / "runs/output.log").read_text()


def test_other_data_and_other_code_on_one_rank_are_refused_at_the_start(tiny_model, reviews, tmp_path):
    """The same recipe on both, and what it points to is not: as with a file on each machine's own disk."""
    for rank in range(2):
        (tmp_path / f"rank-{rank}").mkdir()
        shutil.copytree(Path(sft_dist.__file__).parent, tmp_path / f"rank-{rank}/sft_dist")
    text = reviews.read_text()
    (tmp_path / "rank-0/reviews.csv").write_text(text)
    (tmp_path / "rank-1/reviews.csv").write_text(text.replace("great", "awful", 1))
    (tmp_path / "rank-1/sft_dist/losses/classification.py").write_text("# edited on one machine\n")
    recipe = validate(read(write_recipe(tmp_path / "fails.yaml", tiny_model, reviews)))
    run = RunFolder(tmp_path / "runs/fails/0123456789")
    run.create(recipe)
    run.recipe_file.write_text(run.recipe_file.read_text().replace(str(reviews), "/proc/self/cwd/reviews.csv"))
    folder = harness.run(run.path, tmp_path / "runs", world_size=2, expect=2, arrange=partial(_own_folder, tmp_path))
    message = errors(folder)[0]["message"]
    assert re.search(r"code: \w+ on rank 0 \(.+\); \w+ on rank 1 \(.+\)", message)
    assert "train rows: " in message
    assert "recipe" not in message
    assert "weights" not in message
    assert saved_steps(folder) == []


def _own_folder(base: Path, rank: int) -> None:
    os.chdir(base / f"rank-{rank}")
    if Path("sft_dist").is_dir():
        sft_dist.__file__ = str(Path("sft_dist/__init__.py").resolve())


# ── before there is a process group ─────────────────────────────────────────────────────────────────────────────────
def test_a_launcher_is_told_of_a_failure_before_the_ranks_have_met(tiny_model, reviews, tmp_path):
    recipe = write_recipe(tmp_path / "fails.yaml", tiny_model, reviews)
    folder = harness.run(recipe, tmp_path / "runs", expect=1, arrange=_cannot_start)
    (error,) = errors(folder)
    assert (error["rank"], error["type"], error["message"]) == (0, "RuntimeError", "no such device")


def _cannot_start(rank: int) -> None:
    from sft_dist import engines

    def fail(recipe, folder):
        raise RuntimeError("no such device")

    os.environ["SFT_DIST_ATTEMPT"] = "1"
    engines.start_engine = fail
