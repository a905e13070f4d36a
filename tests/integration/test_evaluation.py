"""From finished runs to a winner: swept, tested once, exported and used, for every problem and kind of tuning.

Each run of RUNS is trained once for this module; tests that change a run's folder work on a copy.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import launch.evaluate
import launch.subprocesses
from launch.subprocesses import start_module
from sft_dist import evaluate, export, predict
from sft_dist.checkpoints import store as ckpt
from sft_dist.checkpoints.store import sealed
from sft_dist.data.prepare import prepare
from sft_dist.evaluation.evaluator import Evaluator
from sft_dist.evaluation.predictions import read_predictions
from sft_dist.recipe.errors import UserError
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model
from tests.conftest import write_reviews
from tests.integration import harness

pytestmark = pytest.mark.slow

# Name -> (processes, sections that replace the defaults below).
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    # 13 validation texts in batches of 4 on two ranks: neither number divides.
    "full": (2, {"tuning": "full", "train": {"tracking": ["tensorboard"]}, "evaluate": {"micro_batch": 4}}),
    "lora": (1, {"tuning": {"method": "lora", "r": 4}}),
    # Belongs to the same sweep as `lora`: other learning rate and loss, same data.
    "slow-lora": (
        1,
        {
            "tuning": {"method": "lora", "r": 4},
            "train": {"lr": 1e-6, "loss": {"name": "cross-entropy", "label_smoothing": 0.4}},
        },
    ),
    "freeze": (1, {"tuning": {"method": "freeze", "train_last_layers": 1}, "train": {"precision": "bf16"}}),
    "multi-label": (2, {"task": {"type": "text-classification", "problem": "multi-label", "label_separator": "|"}}),
    "regression": (
        1,
        {
            "task": {"type": "text-classification", "problem": "regression"},
            "tuning": {"method": "lora", "r": 4},
            # No gain is ever this large, so all validations count as without gain; the best is still the best.
            "train": {"lr": 5e-4, "early_stopping": {"patience": 9, "min_delta": 1000.0}},
            "evaluate": {"export": "adapter"},
        },
    ),
    # Nothing is learned, so the first validation stays the best; validated every 4 steps, saved every 2.
    "idle": (
        1,
        {
            "train": {
                "lr": 1e-12,
                "steps": 40,
                "save_every": "2 steps",
                "eval_every": "4 steps",
                "keep_last": 1,
                "early_stopping": {"patience": 2},
            }
        },
    ),
}
LABEL_COLUMN = {"multi-label": "tags", "regression": "score"}
SAVED = {name: [4, 8, 12] for name in RUNS}


def write_recipe(path: Path, model: Path, source: Path, name: str) -> Path:
    sections = RUNS[name][1]
    recipe = {
        "name": name,
        "description": f"The {name} run.",
        "task": "text-classification",
        "model": {"path": str(model)},
        "data": {
            "source": str(source),
            "max_length": 48,
            "columns": {"label": LABEL_COLUMN.get(name, "label")},
            "split": {"validation": 0.11, "test": 0.1},
        },
        "tuning": "full",
        **sections,
        "train": {
            "steps": 12,
            "global_batch": 16,
            "lr": 3e-3,
            "save_every": "4 steps",
            "log_every": 1,
            **sections.get("train", {}),
        },
    }
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The reviews with a column of tags: what is praised, whether the text is long, or nothing."""
    file = write_reviews(tmp_path_factory.mktemp("evaluation") / "reviews.csv", 120)
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], "tags"])
        writer.writeheader()
        for row in rows:
            tags = [*(["praise"] if row["label"] == "pos" else []), *(["long"] if len(row["text"]) > 60 else ["short"])]
            writer.writerow({**row, "tags": "|".join(tags)})
    return file


@pytest.fixture(scope="module")
def trained(tiny_model, source, tmp_path_factory) -> dict[str, RunFolder]:
    """Every run of RUNS, finished. Started together: most of their time is spent importing."""
    root = tmp_path_factory.mktemp("trained")
    recipes = {name: write_recipe(root / f"{name}.yaml", tiny_model, source, name) for name in RUNS}
    started = {name: harness.start(recipes[name], root / name, RUNS[name][0]) for name in RUNS}
    for name, processes in started.items():
        harness.finish(processes, root / name)
    return {name: RunFolder(harness.the_run(root / name)) for name in RUNS}


@pytest.fixture(scope="module")
def boards(trained) -> dict[str, dict[str, Any]]:
    """The leaderboard of each run, swept by itself."""
    return {name: evaluate.sweep([folder]) for name, folder in trained.items()}


@pytest.fixture
def copied(trained, tmp_path):
    """A run's folder to change, as it was after training and sweeping."""

    def copy(name: str, keep_evaluation: bool = True) -> RunFolder:
        folder = RunFolder(tmp_path / name / trained[name].id)
        shutil.copytree(trained[name].path, folder.path)
        for made in (
            folder.evaluation,
            folder.export,
            folder.path / "leaderboard.json",
            folder.path / "leaderboard.md",
        ):
            if made.is_dir() and not keep_evaluation:
                shutil.rmtree(made)
            elif not made.is_dir():
                made.unlink(missing_ok=True)
        return folder

    return copy


@pytest.fixture
def scored(monkeypatch) -> list[tuple[str, int, str]]:
    """What the evaluator scores from now on: (run, step, split)."""
    asked: list[tuple[str, int, str]] = []
    score = Evaluator.score

    def watch(self, recipe, checkpoint, split):
        asked.append((recipe.name, checkpoint.step, split))
        return score(self, recipe, checkpoint, split)

    monkeypatch.setattr(Evaluator, "score", watch)
    return asked


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def rows_of(folder: RunFolder, split: str) -> Any:
    recipe = folder.recipe()
    return prepare(recipe, task_of(recipe)).splits[split]


def plain_logits(model: torch.nn.Module, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """One text at a time, without anything of this project."""
    model.eval()
    with torch.no_grad():
        rows = [model(**tokenizer(text, truncation=True, max_length=48, return_tensors="pt")).logits for text in texts]
    return torch.cat(rows).float().numpy()


def load_checkpoint(folder: RunFolder, step: int) -> torch.nn.Module:
    """A checkpoint's `model/` through transformers and PEFT alone."""
    place = folder.checkpoint(step) / "model"
    if not (place / "adapter_config.json").exists():
        return AutoModelForSequenceClassification.from_pretrained(place)
    labels = json.loads((place / "config.json").read_text())["id2label"]
    base = AutoModelForSequenceClassification.from_pretrained(folder.recipe().model.path, num_labels=len(labels))
    return PeftModel.from_pretrained(base, place)


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_run_saved_and_validated_as_planned(trained):
    for name in set(RUNS) - {"idle"}:
        assert [int(path.name[5:]) for path in sorted(trained[name].checkpoints.glob("step-*"))] == SAVED[name], name
        assert sorted(harness.metrics(trained[name].path, "validation")) == SAVED[name], name
        assert all(math.isfinite(loss) for loss in harness.losses(trained[name].path).values()), name


def test_what_one_process_scores_afterwards_is_what_the_ranks_scored_in_training(trained, boards):
    for name, board in boards.items():
        newest = max(trained[name].checkpoints.glob("step-*")) / "trainer.json"
        in_training = json.loads(newest.read_text())["progress"]["validated"]
        swept = {str(row["step"]): dict(row["validation"]) for row in board["rows"]}
        compared = set(in_training) & set(swept)
        assert compared, name
        for step in compared:
            assert swept[step].pop("examples") == 13
            for score, value in in_training[step].items():
                same = value if isinstance(value, list) else pytest.approx(value, abs=1e-5)
                assert swept[step][score] == same, (name, step, score)


def test_the_runs_on_two_ranks_really_were(trained):
    for name in ("full", "multi-label"):
        assert json.loads((trained[name].path / "attempts/001/start.json").read_text())["world_size"] == 2


def test_bf16_keeps_weights_in_fp32(trained):
    model = trained["freeze"].checkpoint(12) / "model" / "model.safetensors"
    assert {value.dtype for value in load_file(model).values()} == {torch.float32}


def test_frozen_weights_are_those_of_the_base(trained, tiny_model):
    base = load_file(tiny_model / "model.safetensors")
    tuned = load_file(trained["freeze"].checkpoint(12) / "model" / "model.safetensors")
    changed = {name for name, value in base.items() if not torch.equal(tuned[f"bert.{name}"], value)}
    assert changed
    assert {name.split(".")[0] for name in changed} <= {"encoder", "pooler"}
    assert not [name for name in changed if name.startswith(("encoder.layer.0.", "embeddings."))]


def test_tensorboard_holds_losses_and_validation_scores(trained):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (file,) = trained["full"].path.rglob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(file.parent))
    events.Reload()
    assert {"train/loss", "train/lr", "validation/accuracy"} <= set(events.Tags()["scalars"])
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    assert logged == pytest.approx(harness.losses(trained["full"].path), abs=1e-6)


def test_early_stopping_ends_the_run_and_pruning_spares_the_best_and_the_unscored(trained):
    folder = trained["idle"]
    outcome = json.loads((folder.path / "attempts/001/outcome.json").read_text())
    assert outcome["state"] == "finished"
    assert outcome["last_step"] == 12
    assert "early stopping" in outcome["reason"]
    assert max(harness.losses(folder.path)) == 12
    # 4 is the best, 12 the newest, 2, 6 and 10 were never validated; 8 was scored and is worse than none of these.
    assert [int(path.name[5:]) for path in sorted(folder.checkpoints.glob("step-*"))] == [2, 4, 6, 10, 12]


def test_a_gain_below_min_delta_counts_for_the_best_but_not_for_patience(trained):
    progress = json.loads((trained["regression"].checkpoint(12) / "trainer.json").read_text())["progress"]
    errors = {int(step): scores["mse"] for step, scores in progress["validated"].items()}
    best = min(errors, key=errors.__getitem__)
    assert best != 4  # the first validation would be the best whatever the rule
    assert (progress["best_step"], progress["best_score"]) == (best, errors[best])
    assert progress["validations_without_gain"] == 2


def test_a_run_that_stopped_early_does_not_train_on_when_started_again(copied, tmp_path):
    folder = copied("idle")
    harness.finish(harness.start(folder.path, tmp_path / "again"), tmp_path / "again")
    outcome = json.loads((folder.path / "attempts/002/outcome.json").read_text())
    assert (outcome["state"], outcome["last_step"]) == ("finished", 12)
    assert max(harness.losses(folder.path)) == 12
    assert {record["attempt"] for record in harness.metrics(folder.path).values()} == {1}


# ── the sweep ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", RUNS)
def test_the_winner_is_the_best_on_validation(boards, trained, name):
    board = boards[name]
    metric, direction = next(iter(trained[name].recipe().task.kind.metrics.items()))
    assert (board["metric"], board["direction"]) == (metric, direction)
    scores = [row["validation"][metric] for row in board["rows"]]
    assert scores == sorted(scores, reverse=direction == "max")
    best = max(scores) if direction == "max" else min(scores)
    assert board["winner"]["validation"][metric] == best
    steps = {int(path.name[5:]) for path in trained[name].checkpoints.glob("step-*")}
    assert {row["step"] for row in board["rows"]} == steps
    tied = [row for row in board["rows"] if row["validation"][metric] == best]
    assert board["winner"]["step"] == min(tied, key=lambda row: (row["validation"]["loss"], row["step"]))["step"]


@pytest.mark.parametrize("name", ["full", "lora", "multi-label", "regression"])
def test_logits_of_the_sweep_are_those_of_the_checkpoint_loaded_afresh(trained, monkeypatch, tmp_path, copied, name):
    import sft_dist.evaluation.evaluator as judge_module

    seen: list[np.ndarray] = []
    scores_of = judge_module.scores_of

    def watch(task, loss, predictions, *others):
        seen.append(np.stack(predictions))
        return scores_of(task, loss, predictions, *others)

    monkeypatch.setattr(judge_module, "scores_of", watch)
    folder = copied(name, keep_evaluation=False)
    board = evaluate.sweep([folder])
    assert len(seen) == len(SAVED[name]) + 2  # each on validation, one on test, and the untrained model
    tokenizer = AutoTokenizer.from_pretrained(trained[name].checkpoint(4) / "model")
    texts = {split: rows_of(folder, split).column("text") for split in ("validation", "test")}
    fresh = [plain_logits(load_checkpoint(folder, step), tokenizer, texts["validation"]) for step in SAVED[name]]
    fresh.append(plain_logits(load_checkpoint(folder, board["winner"]["step"]), tokenizer, texts["test"]))
    recipe = folder.recipe()
    task = task_of(recipe)
    task.labels = json.loads((trained[name].checkpoint(4) / "trainer.json").read_text())["labels"]
    fresh.append(plain_logits(build_model(recipe, task, tokenizer), tokenizer, texts["validation"]))
    for found, expected in zip(seen, fresh, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(seen[0], seen[2], atol=1e-3)  # checkpoints differ, so equality says something


def test_accuracy_is_that_of_a_count_by_hand(trained, boards):
    winner = boards["full"]["winner"]
    rows = rows_of(trained["full"], "test")
    model = load_checkpoint(trained["full"], winner["step"])
    tokenizer = AutoTokenizer.from_pretrained(Path(winner["checkpoint"]) / "model")
    said = plain_logits(model, tokenizer, rows.column("text")).argmax(axis=1)
    right = sum(
        model.config.id2label[int(number)] == target for number, target in zip(said, rows.column("label"), strict=True)
    )
    assert winner["test"]["accuracy"] == pytest.approx(right / len(rows))
    assert winner["test"]["examples"] == len(rows)


def test_test_is_scored_once_for_the_winner_alone_and_never_again(copied, scored):
    folder = copied("lora", keep_evaluation=False)
    board = evaluate.sweep([folder])
    winner = board["winner"]["step"]
    assert scored == [("lora", step, "validation") for step in SAVED["lora"]] + [("lora", winner, "test")]
    (record,) = folder.evaluation.glob("*.test.json")
    written = record.stat().st_mtime_ns
    scored.clear()
    assert evaluate.sweep([folder]) == board
    assert scored == []
    assert record.stat().st_mtime_ns == written
    evaluate.sweep([folder], force=True)
    assert len(scored) == len(SAVED["lora"]) + 1


def test_processes_share_the_checkpoints_and_a_killed_one_changes_nothing(
    copied, boards, tmp_path, monkeypatch, warm_python
):
    folder = copied("lora", keep_evaluation=False)
    killed = start_module("sft_dist.evaluate", [folder.path, "--score-only"])
    while not any(folder.evaluation.glob("step-*.validation.json")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    start = partial(launch.subprocesses.module_command, python=sys.executable)
    monkeypatch.setattr(launch.subprocesses, "module_command", start)
    assert launch.evaluate.run_sweep([folder.path], folder.path, force=False, processes=2) == 0
    expected = json.loads(json.dumps(boards["lora"]).replace(boards["lora"]["winner"]["folder"], str(folder.path)))
    board = json.loads((folder.path / "leaderboard.json").read_text())
    for evaluation in (*board["test_evaluations"], *expected["test_evaluations"]):
        del evaluation["time"]
    assert board == expected


def apart(folder: RunFolder) -> None:
    """Moves the weights of two checkpoints away from those of the newest in opposite directions, and deletes it: then the mean of
    the two is what it was."""
    newest = load_file(folder.checkpoint(12) / "model/model.safetensors")
    torch.manual_seed(0)
    noise = {name: torch.randn_like(value) for name, value in newest.items() if value.is_floating_point()}
    for step, sign in ((4, 1), (8, -1)):
        path = folder.checkpoint(step)
        weights = {name: value + sign * noise[name] if name in noise else value for name, value in newest.items()}
        save_file(weights, path / "model/model.safetensors", metadata={"format": "pt"})
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"] |= ckpt.describe(path, [path / "model/model.safetensors"])
        (path / "manifest.json").write_text(json.dumps(sealed(manifest)))
    shutil.rmtree(folder.checkpoint(12))


def test_a_mean_of_checkpoints_is_chosen_tested_compared_and_exported_like_one(copied, boards, scored, capsys):
    newest = next(row for row in boards["full"]["rows"] if row["step"] == 12)
    folder = copied("full", keep_evaluation=False)
    original = load_file(folder.checkpoint(12) / "model/model.safetensors")
    apart(folder)
    words = [str(folder.path), "--average=last:2", "--average=greedy"]
    assert evaluate.main(words) == 0
    assert scored == [
        ("full", 4, "validation"),
        ("full", 8, "validation"),
        ("full", 8, "validation"),
        ("full", 8, "test"),
    ]
    board = json.loads((folder.path / "leaderboard.json").read_text())
    winner = board["winner"]
    assert (winner["step"], winner["members"], len(board["rows"])) == (8, [4, 8], 3)
    assert winner["validation"]["accuracy"] == newest["validation"]["accuracy"]
    assert set(winner["intervals"]) == {"validation", "test"}
    assert all(row["p_value"] is not None for row in board["rows"][1:])
    assert "best of 3" in board["selection_note"]
    mean = Path(winner["checkpoint"])
    assert list(folder.averages.iterdir()) == [mean]
    weights = load_file(mean / "model/model.safetensors")
    assert max((weights[name] - value).abs().max() for name, value in original.items()) < 1e-5
    texts, tokenizer = rows_of(folder, "validation").column("text"), AutoTokenizer.from_pretrained(mean / "model")
    fresh = plain_logits(AutoModelForSequenceClassification.from_pretrained(mean / "model"), tokenizer, texts)
    answers = read_predictions(
        folder.evaluation / f"{mean.name}.validation.predictions.npz", ckpt.Checkpoint(mean, 8).fingerprint()
    )
    np.testing.assert_allclose(np.stack(answers.predictions), fresh, atol=1e-5)
    exported = AutoModelForSequenceClassification.from_pretrained(board["export"])
    np.testing.assert_allclose(plain_logits(exported, tokenizer, texts), fresh, atol=1e-5)
    card = (Path(board["export"]) / "README.md").read_text()
    assert "- **Checkpoint**: mean of steps 4, 8 of run" in card

    scored.clear()
    shutil.rmtree(folder.averages)  # as if it was killed before the winner was written
    assert evaluate.main(words) == 0
    assert (scored, json.loads((folder.path / "leaderboard.json").read_text())) == ([], board)
    shutil.rmtree(folder.averages)
    capsys.readouterr()
    assert export.main([str(folder.path), "--to", str(folder.path / "again"), "--temperature"]) == 0
    about = json.loads((folder.path / "again/sft_dist.json").read_text())
    assert (about["members"], about["temperature"] > 0) == ([4, 8], True)
    assert evaluate.sweep([folder])["winner"].get("members") is None
    assert not any(folder.averages.iterdir()), "no leaderboard of this run names it any more"


def test_a_run_is_followed_to_its_end(tiny_model, source, tmp_path):
    processes = harness.start(write_recipe(tmp_path / "full.yaml", tiny_model, source, "freeze"), tmp_path / "runs", 1)
    while not any((tmp_path / "runs").glob("*/*/attempts/001/start.json")):
        assert any(process.is_alive() for process in processes)
        time.sleep(0.01)
    folder = RunFolder(harness.the_run(tmp_path / "runs"))
    board = evaluate.sweep([folder], follow=True)
    harness.finish(processes, tmp_path / "runs")
    assert sorted(row["step"] for row in board["rows"]) == SAVED["freeze"]


def test_a_checkpoint_that_changed_is_scored_again(boards, copied, scored):
    folder = copied("full")
    target, other = folder.checkpoint(8), folder.checkpoint(12)
    shutil.rmtree(target)
    shutil.copytree(other, target)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps(ckpt.sealed({**manifest, "step": 8})))
    evaluate.sweep([folder])
    assert ("full", 8, "validation") in scored
    assert ("full", 12, "validation") not in scored


def test_a_damaged_checkpoint_is_left_out_and_named(copied, boards):
    folder = copied("full")
    winner = boards["full"]["winner"]["step"]
    damage(folder.checkpoint(winner) / "model" / "model.safetensors")
    board = evaluate.sweep([folder])
    assert sorted(row["step"] for row in board["rows"]) == sorted(set(SAVED["full"]) - {winner})
    assert board["winner"]["step"] != winner
    (line,) = board["damaged"]
    assert f"step-{winner:08d} is damaged and excluded: model/model.safetensors: content changed" in line
    assert line in (folder.path / "leaderboard.md").read_text()


def test_a_model_that_answers_with_no_numbers_ranks_last_and_the_sweep_goes_on(copied, boards, monkeypatch):
    from sft_dist.evaluation import evaluator as judge_module

    folder, best = copied("full"), boards["full"]["winner"]["step"]
    load_weights = judge_module.load_weights

    def spoiled(model, path):
        load_weights(model, path)
        if path.parent.name == f"step-{best:08d}":
            with torch.no_grad():
                model.classifier.bias.fill_(math.nan)

    monkeypatch.setattr(judge_module, "load_weights", spoiled)
    board = evaluate.sweep([folder], force=True)
    last = board["rows"][-1]
    assert (last["step"], last["validation"]["accuracy"], last["validation"]["loss"]) == (best, None, None)
    assert f"step {best}: 13 of 13 predictions are NaN or infinite" in (folder.path / "leaderboard.md").read_text()


def test_when_all_are_damaged_there_is_nothing_to_evaluate(copied):
    folder = copied("full")
    for step in SAVED["full"]:
        damage(folder.checkpoint(step) / "trainer.json")
    with pytest.raises(UserError) as caught:
        evaluate.sweep([folder])
    assert str(caught.value).count("is damaged") == 3


def test_a_matrix_has_one_winner(trained, boards, tmp_path):
    both = [trained["lora"], trained["slow-lora"]]
    board = evaluate.sweep(both, leaderboard=tmp_path / "new" / "board")
    assert len(board["rows"]) == 6
    assert {row["run"] for row in board["rows"]} == {folder.id for folder in both}
    best = max(row["validation"]["accuracy"] for name in ("lora", "slow-lora") for row in boards[name]["rows"])
    assert board["winner"]["validation"]["accuracy"] == best
    assert board["winner"] in [{**boards[name]["winner"]} for name in ("lora", "slow-lora")]
    differences = board["differences"]
    assert differences[trained["lora"].id]["train.lr"] == 3e-3
    assert differences[trained["slow-lora"].id]["train.loss.label_smoothing"] == 0.4
    text = (tmp_path / "new" / "board" / "leaderboard.md").read_text()
    assert re.search(f"Winner: run {board['winner']['run']} \\(lr=.*\\), step {board['winner']['step']}", text)
    assert json.loads((tmp_path / "new" / "board" / "leaderboard.json").read_text()) == board


def test_runs_of_a_matrix_are_each_scored_with_their_own_loss(copied, boards):
    together = evaluate.sweep([copied(name, keep_evaluation=False) for name in ("lora", "slow-lora")])
    alone = {row["run"]: {} for name in ("lora", "slow-lora") for row in boards[name]["rows"]}
    for name in ("lora", "slow-lora"):
        for row in boards[name]["rows"]:
            alone[row["run"]][row["step"]] = row["validation"]["loss"]
    for row in together["rows"]:
        assert row["validation"]["loss"] == pytest.approx(alone[row["run"]][row["step"]], abs=1e-6)


def test_runs_that_choose_by_different_scores_have_no_common_winner(trained):
    with pytest.raises(UserError, match="no common winner"):
        evaluate.sweep([trained["full"], trained["regression"]])


# ── export ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["full", "lora", "multi-label"])
def test_a_merged_export_is_a_plain_model(trained, boards, name):
    place = Path(boards[name]["export"])
    assert place == trained[name].export
    assert not (place / "adapter_config.json").exists()
    model = AutoModelForSequenceClassification.from_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert sorted(model.config.label2id) == (["long", "praise", "short"] if name == "multi-label" else ["neg", "pos"])
    texts = rows_of(trained[name], "validation").column("text")
    expected = plain_logits(load_checkpoint(trained[name], boards[name]["winner"]["step"]), tokenizer, texts)
    np.testing.assert_allclose(plain_logits(model, tokenizer, texts), expected, atol=1e-5)


def test_an_adapter_export_is_loaded_by_peft_alone(trained, boards):
    place = Path(boards["regression"]["export"])
    assert not (place / "model.safetensors").exists()
    model = AutoPeftModelForSequenceClassification.from_pretrained(place, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(place)
    texts = rows_of(trained["regression"], "validation").column("text")
    winner = boards["regression"]["winner"]["step"]
    expected = plain_logits(load_checkpoint(trained["regression"], winner), tokenizer, texts)
    np.testing.assert_allclose(plain_logits(model, tokenizer, texts), expected, atol=1e-5)


def test_both_forms_of_an_export_agree(trained, boards, tmp_path, capsys):
    assert export.main([str(trained["regression"].path), "--to", str(tmp_path / "merged"), "--form", "merged"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    texts = rows_of(trained["regression"], "test").column("text")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    apart = AutoPeftModelForSequenceClassification.from_pretrained(trained["regression"].export, num_labels=1)
    np.testing.assert_allclose(plain_logits(merged, tokenizer, texts), plain_logits(apart, tokenizer, texts), atol=1e-5)


def test_the_model_card_has_data_recipe_and_scores(trained, boards, source, tiny_model):
    card = (trained["full"].export / "README.md").read_text()
    winner = boards["full"]["winner"]
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-classification\n")
    for part in (f"`{source}`", f"`{tiny_model}`", "The full run.", "neg, pos", f"step {winner['step']} of run"):
        assert part in card
    accuracies = f"| accuracy | {winner['validation']['accuracy']:.4f} | {winner['test']['accuracy']:.4f} |"
    assert accuracies in card
    recipe = json.loads(card.split("```json\n")[1].split("```")[0])
    assert recipe["train"]["lr"] == 3e-3
    assert recipe["data"]["source"] == str(source)


def test_a_chosen_step_can_be_exported_over_an_older_export(copied, tmp_path):
    folder, to = copied("full"), tmp_path / "deep" / "model"
    for step in (4, 8):
        assert export.main([str(folder.path), "--step", str(step), "--to", str(to)]) == 0
        assert json.loads((to / export.ABOUT).read_text())["step"] == step
    exported, saved = (load_file(path / "model.safetensors") for path in (to, folder.checkpoint(8) / "model"))
    assert all(torch.equal(exported[name], value) for name, value in saved.items())
    assert list(to.parent.iterdir()) == [to]


def test_without_a_sweep_the_best_in_training_is_exported(copied, tmp_path):
    folder = copied("idle", keep_evaluation=False)
    assert export.main([str(folder.path), "--to", str(tmp_path / "model")]) == 0
    assert json.loads((tmp_path / "model" / export.ABOUT).read_text())["step"] == 4


# ── predict ─────────────────────────────────────────────────────────────────────────────────────────────────────────
TEXTS = ["a great film", "dull and poor", "  the film was fine ", "", "boring, awful " * 40, "日本語 café"]


def expected_labels(folder: RunFolder, texts: list[str]) -> list[str]:
    model = AutoModelForSequenceClassification.from_pretrained(folder.export)
    tokenizer = AutoTokenizer.from_pretrained(folder.export)
    found = plain_logits(model, tokenizer, [text.strip() for text in texts]).argmax(axis=1)
    return [model.config.id2label[int(number)] for number in found]


def write_texts(path: Path, texts: list[str]) -> Path:
    if path.suffix == ".txt":
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps({"n": 1, "text": text}) for text in texts), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8-sig" if "bom" in path.name else "utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([["text", "n"], *([text, 1] for text in texts)])
    return path


@pytest.mark.parametrize("name", ["in.txt", "in.csv", "in.tsv", "in.jsonl", "bom.csv"])
def test_every_kind_of_file_is_labelled_in_its_order(trained, boards, tmp_path, capsys, name):
    file = write_texts(tmp_path / name, TEXTS)
    assert predict.main([str(trained["full"].path), str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == expected_labels(trained["full"], TEXTS)
    assert [line.split("\t")[2] for line in lines] == TEXTS


def test_json_output_has_all_probabilities(trained, boards, tmp_path, capsys):
    file = write_texts(tmp_path / "in.csv", TEXTS)
    assert predict.main([str(trained["lora"].export), str(file), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert [row["label"] for row in rows] == expected_labels(trained["lora"], TEXTS)
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["label"]]


@pytest.mark.usefixtures("warm_python")
def test_standard_input_is_labelled_by_the_program_itself(trained, boards):
    found = subprocess.run(
        [sys.executable, "-m", "sft_dist.predict", str(trained["full"].path)],
        input="\n".join(TEXTS[:3]) + "\n",
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr
    assert [line.split("\t")[0] for line in found.stdout.splitlines()] == expected_labels(trained["full"], TEXTS[:3])
    assert found.stderr == ""


def test_numbers_from_an_adapter_are_those_of_the_plain_model(trained, boards, tmp_path, capsys):
    file = write_texts(tmp_path / "in.txt", TEXTS)
    assert predict.main([str(trained["regression"].path), str(file), "--json"]) == 0
    values = [json.loads(line)["value"] for line in capsys.readouterr().out.splitlines()]
    model = AutoPeftModelForSequenceClassification.from_pretrained(trained["regression"].export, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(trained["regression"].export)
    expected = plain_logits(model, tokenizer, [text.strip() for text in TEXTS])[:, 0]
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_many_labels_are_joined_and_none_is_empty(trained, boards, tmp_path, capsys):
    file = write_texts(tmp_path / "in.txt", TEXTS)
    assert predict.main([str(trained["multi-label"].path), str(file), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in rows:
        assert row["labels"] == [label for label, p in row["probabilities"].items() if p >= 0.5]
    assert predict.main([str(trained["multi-label"].path), str(file)]) == 0
    plain = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert plain == [",".join(row["labels"]) for row in rows]


def test_an_empty_file_gives_no_line(trained, boards, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    assert predict.main([str(trained["full"].path), str(tmp_path / "empty.txt")]) == 0
    assert capsys.readouterr().out == ""


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────
def refused(program: Any, capsys: Any, *arguments: Any) -> str:
    """The error of a program that must end with 2 without a traceback."""
    assert program.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.txt", None, "No such file"),
        ("in.csv", b"review,n\nfine,1\n", "row 1: no column 'text'"),
        ("in.jsonl", b'{"text": "a"}\n{"text": \n', "in.jsonl:2: not JSON"),
        ("in.jsonl", b'{"text": "a"}\n["a"]\n', "in.jsonl:2: expected an object"),
        ("in.txt", b"fine\n\xff\xfe\n", "not UTF-8"),
        ("in.csv", b'text\n"never closed\n', "line 2: unterminated quoted field"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(trained, boards, tmp_path, capsys, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    program_output = predict.main([str(trained["full"].path), str(tmp_path / name)])
    captured = capsys.readouterr()
    assert program_output == 2
    assert said in captured.err
    assert name in captured.err
    assert "Traceback" not in captured.err


def test_standard_input_that_is_not_utf8_is_a_mistake(trained, boards, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8"))
    assert predict.main([str(trained["full"].path)]) == 2
    captured = capsys.readouterr()
    assert "standard input:1: not UTF-8" in captured.err
    assert len(captured.out.splitlines()) == 1  # one output a row
    assert "Traceback" not in captured.err


def test_what_is_no_exported_model_is_refused(trained, copied, tmp_path, capsys):
    assert "not an exported model" in refused(predict, capsys, tmp_path / "nowhere", "-")
    bare = copied("full", keep_evaluation=False)
    (tmp_path / "in.txt").write_text("fine\n")
    assert "run `sft-dist eval` on it first" in refused(predict, capsys, bare.path, tmp_path / "in.txt")


@pytest.mark.parametrize("harm", [os.remove, damage, lambda file: file.write_bytes(b"")])
def test_an_export_without_its_weights_is_refused(trained, boards, copied, tmp_path, capsys, harm):
    folder = copied("full")
    weights = folder.export / "model.safetensors"
    if harm is damage:
        weights.write_bytes(b"\xff" * 100)
    else:
        harm(weights)
    (tmp_path / "in.txt").write_text("fine\n")
    assert "cannot be loaded" in refused(predict, capsys, folder.path, tmp_path / "in.txt")


def test_exports_that_make_no_sense_are_refused(trained, copied, tmp_path, capsys):
    folder = copied("full")
    assert "no recipe.json" in refused(export, capsys, tmp_path)
    assert "it has: 4, 8, 12" in refused(export, capsys, folder.path, "--step", 5)
    assert "has no adapter" in refused(export, capsys, folder.path, "--form", "adapter")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    assert "is no exported model" in refused(export, capsys, folder.path, "--to", tmp_path / "mine")
    assert "is no exported model" in refused(export, capsys, folder.path, "--to", tmp_path / "mine" / "letter.txt")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"
    damage(folder.checkpoint(8) / "state" / "rank-00000.safetensors")
    assert "is damaged" in refused(export, capsys, folder.path, "--step", 8)
    (folder.checkpoint(12) / "trainer.json").unlink()
    damage(folder.checkpoint(4) / "trainer.json")
    assert "has no checkpoint" in refused(export, capsys, folder.path)


def test_sweeps_of_what_is_no_run_are_refused(copied, tmp_path, capsys):
    assert "no recipe.json" in refused(evaluate, capsys, tmp_path)
    folder = copied("full")
    shutil.rmtree(folder.checkpoints)
    assert "no checkpoint to evaluate" in refused(evaluate, capsys, folder.path)


def test_a_split_that_the_data_lack_is_a_mistake_that_says_what_to_do(copied, capsys):
    folder = copied("full")
    recipe = json.loads(folder.recipe_file.read_text())
    recipe["data"]["split"]["test"] = 0.0
    folder.recipe_file.write_text(json.dumps(recipe))
    (folder.path / "manifest.json").unlink()  # accepts the edit
    for file in folder.checkpoints.glob("*/manifest.json"):  # as if it had been the recipe from the beginning
        manifest = {key: value for key, value in json.loads(file.read_text()).items() if key != "run"}
        file.write_text(json.dumps(sealed(manifest)))
    for record in (folder.splits_file, *folder.evaluation.glob("*")):
        record.unlink()
    said = refused(evaluate, capsys, folder.path)
    assert "no test split" in said
    assert "evaluate.report_on" in said
