"""A checkpoint is scored on the rows that its run held out, or not at all."""

from __future__ import annotations

import csv
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft_dist.checkpoints.store import Checkpoint
from sft_dist.data.prepare import prepare
from sft_dist.data.splits import keep_splits
from sft_dist.evaluation.comparison import AnswersReader
from sft_dist.evaluation.evaluator import Evaluator
from sft_dist.evaluation.leaderboard import Scored
from sft_dist.evaluation.predictions import predictions_file, read_predictions
from sft_dist.evaluation.slices import with_slices
from sft_dist.evaluation.sweep import score_untrained
from sft_dist.evaluation.temperature import fitted_temperature
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor
from sft_dist.tuning import save_weights


@pytest.fixture
def run(tiny_model, reviews, tmp_path):
    """A recipe and a checkpoint of a run that has recorded its splits."""
    source = shutil.copy(reviews, tmp_path / "rows.csv")
    recipe = Recipe.model_validate(
        {
            "name": "demo",
            "task": "text-classification",
            "model": {"path": str(tiny_model)},
            "data": {"source": str(source), "max_length": 32},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
    )
    task = task_of(recipe)
    processor = load_processor(recipe, task)
    data = prepare(recipe, task, processor)
    folder = RunFolder(tmp_path / "run")
    checkpoint = Checkpoint(folder.checkpoint(5), 5)
    checkpoint.model.mkdir(parents=True)
    model = build_model(recipe, task, processor)
    save_weights(model, model.state_dict(), checkpoint.model)
    (checkpoint.path / "manifest.json").write_text("{}")
    keep_splits(folder.splits_file, {split: rows.ids for split, rows in data.splits.items()}, data.contents)
    return recipe, checkpoint


def rewrite(file, change):
    with file.open(newline="") as stream:
        head, *rows = csv.reader(stream)
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([head, *change(rows)])


@pytest.mark.slow
def test_the_rows_that_were_held_out_are_scored(run):
    recipe, checkpoint = run
    assert Evaluator().score(recipe, checkpoint, "test")["examples"] == 12


@pytest.mark.slow
def test_predictions_are_kept_with_rows_and_groups(run, tmp_path):
    recipe, checkpoint = run
    checkpoint.run_folder.splits_file.unlink()
    rewrite(tmp_path / "rows.csv", lambda rows: [[*row[:2], f"g{number // 4}"] for number, row in enumerate(rows)])
    split = recipe.data.split.model_copy(update={"group": "score"})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"split": split})})
    scores = Evaluator().score(recipe, checkpoint, "validation")
    answers = read_predictions(predictions_file(checkpoint, "validation"), checkpoint.fingerprint())
    assert answers is not None
    task = task_of(recipe)
    data = prepare(recipe, task, load_processor(recipe, task))
    examples = data.examples["validation"]
    assert {name: scores[name] for name in ("accuracy", "roc_auc")}.items() <= task.score(
        answers.predictions, examples, None
    ).items()
    with (tmp_path / "rows.csv").open(newline="") as stream:
        names = [row["score"] for row in csv.DictReader(stream)]
    pairs = {(names[row], int(group)) for row, group in zip(answers.rows, answers.groups, strict=True)}
    assert len(pairs) == len({name for name, _ in pairs}) == len({group for _, group in pairs}) > 1
    assert read_predictions(predictions_file(checkpoint, "validation"), "other weights") is None


@pytest.mark.slow
def test_slices_and_the_temperature_come_from_kept_predictions(run, monkeypatch):
    recipe, checkpoint = run
    evaluator, folder = Evaluator(), checkpoint.run_folder
    scores = evaluator.score(recipe, checkpoint, "validation")
    monkeypatch.setattr(Evaluator, "_scores", None)  # nothing is scored again
    evaluate = recipe.evaluate.model_copy(update={"slices": ["label"]})
    reader, asked = AnswersReader(evaluator.prepared), recipe.model_copy(update={"evaluate": evaluate})
    winner = Scored(folder, 5, checkpoint.fingerprint(), scores)
    slices = with_slices({"winner": {"validation": scores}}, winner, asked, reader)["winner"]["slices"]["validation"]
    by_label = {entry["slice"]: entry["examples"] for entry in slices if entry["by"] == "label"}
    labels = evaluator.prepared(recipe).splits["validation"].column("label")
    assert by_label == Counter(labels)
    assert sum(entry["examples"] for entry in slices if entry["by"] == "length (tokens)") == len(labels)
    assert all(entry["p_value"] is None for entry in slices), "too few examples for a claim"
    assert fitted_temperature(reader, winner, recipe) > 0


@pytest.mark.slow
def test_the_untrained_model_has_none_of_a_checkpoint_s_weights(run):
    recipe, checkpoint = run
    weights = load_file(checkpoint.model / "model.safetensors")
    save_file(
        {name: torch.zeros_like(value) for name, value in weights.items()}, checkpoint.model / "model.safetensors"
    )
    evaluator = Evaluator()
    winner = Scored(checkpoint.run_folder, 5, "", evaluator.score(recipe, checkpoint, "validation"))
    untrained = score_untrained(evaluator, winner, recipe, force=False)
    assert untrained["loss"] != winner.scores["loss"]
    assert untrained == Evaluator().score_untrained(recipe, checkpoint.run_folder, "validation")
    assert score_untrained(None, winner, recipe, force=False) == untrained  # recorded


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[::-1],
        lambda rows: rows[1:],
        lambda rows: [*rows, ["one more film", "pos", "1"]],
        lambda rows: [[text, {"neg": "pos", "pos": "neg"}[label], score] for text, label, score in rows],
    ],
    ids=["shuffled", "a row less", "a row more", "other labels"],
)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_changed_source_is_refused(run, tmp_path, change, split):
    recipe, checkpoint = run
    rewrite(tmp_path / "rows.csv", change)
    with pytest.raises(UserError, match="not the one this run began with"):
        Evaluator().score(recipe, checkpoint, split)


@pytest.mark.slow
def test_damaged_splits_are_refused(run):
    recipe, checkpoint = run
    checkpoint.run_folder.splits_file.write_text("{")
    with pytest.raises(UserError, match=r"splits\.json is damaged"):
        Evaluator().score(recipe, checkpoint, "test")
