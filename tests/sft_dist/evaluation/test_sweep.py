"""Which checkpoints a sweep scores: each once, whoever does it, and none whose bytes are not those of its manifest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sft_dist.checkpoints import store as ckpt
from sft_dist.data.prepare import prepare
from sft_dist.evaluation import evaluator as evaluator_module
from sft_dist.evaluation import sweep as sweep_module
from sft_dist.evaluation.evaluator import Evaluator
from sft_dist.evaluation.leaderboard import Scored
from sft_dist.evaluation.sweep import ValidationScores, remaining_text
from sft_dist.recipe.files import read_json, write_json
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.run.locks import open_lock_file, try_acquire
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor
from sft_dist.tuning import save_weights
from tests.sft_dist.checkpoints.test_averaging import save, weights_of
from tests.sft_dist.checkpoints.test_store import publish

RECIPE = {"name": "demo", "task": "text-classification", "data": {"source": "rows.csv", "max_length": 32}}
RECIPE |= {"model": {"path": "base"}, "tuning": "full", "train": {"lr": 1e-3}}


class Scorer:
    """Stands in for an evaluator: notes what it scores, and calls a function before it answers."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.before_answer: dict[int, Any] = {}

    def score(self, recipe: Recipe, checkpoint: ckpt.Checkpoint, split: str) -> dict[str, Any]:
        self.steps.append(checkpoint.step)
        self.before_answer.get(checkpoint.step, lambda: None)()
        return {"f1_macro": checkpoint.step / 100, "loss": 1.0}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "demo" / "0123456789")
    folder.path.mkdir(parents=True)
    for step in (4, 8, 12):
        publish(folder, step)
    return folder


def validation(folder: RunFolder, scorer: Scorer, force: bool = False) -> ValidationScores:
    return ValidationScores(scorer, {folder: Recipe.model_validate(RECIPE)}, force)  # type: ignore[arg-type]


def lock_of(folder: RunFolder, step: int) -> int:
    """Holds what a process holds that scores this checkpoint."""
    folder.evaluation.mkdir(exist_ok=True)
    descriptor = open_lock_file(folder.evaluation / f".step-{step:08d}.lock")
    assert try_acquire(descriptor)
    return descriptor


def test_each_checkpoint_is_scored_once_unless_forced(folder: RunFolder) -> None:
    scorer = Scorer()
    scores = validation(folder, scorer)
    scores.update()
    scores.update()
    validation(folder, scorer).update()
    assert scorer.steps == [4, 8, 12]
    assert [entry.step for entry in scores.scored] == [4, 8, 12]
    validation(folder, scorer, force=True).update()
    assert scorer.steps == [4, 8, 12] * 2


def test_shares_divide_the_checkpoints(folder: RunFolder) -> None:
    recipe = Recipe.model_validate(RECIPE)
    steps = []
    for index in range(2):
        scorer = Scorer()
        ValidationScores(scorer, {folder: recipe}, share=(index, 2)).update()  # type: ignore[arg-type]
        steps.append(scorer.steps)
    assert steps == [[4, 12], [8]]


@pytest.mark.parametrize("writes", [True, False], ids=["the other process ends well", "the other process is killed"])
def test_what_another_process_scores_comes_last(folder: RunFolder, writes: bool) -> None:
    scorer, lock = Scorer(), lock_of(folder, 4)
    record = {"checkpoint": ckpt.published(folder)[0].fingerprint(), "scores": {"f1_macro": 0.7, "loss": 1.0}}

    def end_other_process() -> None:
        if writes:
            write_json(folder.evaluation / "step-00000004.validation.json", record)
        os.close(lock)

    scorer.before_answer[12] = end_other_process
    scores = validation(folder, scorer)
    scores.update()
    assert scorer.steps == [8, 12] + ([] if writes else [4])
    assert [(entry.step, entry.scores["f1_macro"]) for entry in scores.scored] == [
        (4, 0.7 if writes else 0.04), (8, 0.08), (12, 0.12),
    ]  # fmt: skip


def test_checkpoints_are_followed_until_the_run_has_ended(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, ended = Scorer(), iter([False, False, True])
    monkeypatch.setattr(sweep_module, "has_ended", lambda folder: next(ended))
    scorer.before_answer[12] = lambda: publish(folder, 16)  # training continues ...
    scorer.before_answer[16] = lambda: shutil.rmtree(folder.checkpoint(4))  # ... and deletes what is old
    scores = validation(folder, scorer)
    scores.follow(interval_s=0)
    assert scorer.steps == [4, 8, 12, 16]
    assert [entry.step for entry in scores.scored] == [8, 12, 16]
    assert next(ended, "over") == "over"


def test_a_checkpoint_that_is_deleted_while_it_is_scored_is_passed_over(folder: RunFolder) -> None:
    scorer = Scorer()

    def delete() -> None:
        shutil.rmtree(folder.checkpoint(8))
        raise FileNotFoundError

    scorer.before_answer[8] = delete
    scores = validation(folder, scorer)
    scores.update()
    assert ([entry.step for entry in scores.scored], scores.damaged) == ([4, 12], [])


def test_weights_of_other_steps_and_runs_are_damage(folder: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "demo" / "abcdef0123")
    other.path.mkdir()
    publish(other, 4, text="veights")
    weights = [run.checkpoint(step) / "model/model.safetensors" for run, step in ((folder, 4), (folder, 8), (other, 4))]
    contents = [file.read_bytes() for file in weights]
    for file, content in zip(weights, [contents[2], contents[0], contents[1]], strict=True):
        file.write_bytes(content)
    scorer = Scorer()
    recipe = Recipe.model_validate(RECIPE)
    scores = ValidationScores(scorer, {folder: recipe, other: recipe})  # type: ignore[arg-type]
    scores.update()
    assert scorer.steps == [12]
    assert [line.split(" is damaged")[0] for line in scores.damaged] == [
        "0123456789 step-00000004", "0123456789 step-00000008", "abcdef0123 step-00000004",
    ]  # fmt: skip
    assert all("model/model.safetensors: content changed (SHA-256 differs)" in line for line in scores.damaged)


def test_the_winner_is_whole_down_to_the_state_of_its_optimizer(folder: RunFolder) -> None:
    (folder.checkpoint(12) / "state/rank-00000.safetensors").write_text("state of rank 0 at step 13")
    scores = validation(folder, Scorer())
    scores.update()
    assert (len(scores.scored), scores.damaged) == (3, [])
    assert [entry.step for entry in scores.exclude_damaged(scores.scored[::-1])] == [8, 4]
    assert "step-00000012 is damaged and excluded: state/rank-00000.safetensors: content changed" in scores.damaged[0]


def test_a_mean_that_comes_out_otherwise_than_it_was_scored_is_excluded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "demo" / "0123456789")
    folder.path.mkdir(parents=True)
    first, _ = (save(folder, step, weights_of(step)) for step in (4, 8))
    mean, checkpoint = Scored(folder, 8, "other bytes", {}, (4, 8)), Scored(folder, 4, first.fingerprint(), {})
    scores = validation(folder, Scorer())
    assert scores.exclude_damaged([mean, checkpoint]) == [checkpoint]
    assert scores.damaged[0].startswith(f"0123456789 {mean.path.name} is damaged and excluded: made again, its bytes")


def test_a_record_of_other_bytes_is_stale(folder: RunFolder) -> None:
    scorer = Scorer()
    validation(folder, scorer).update()
    shutil.rmtree(folder.checkpoint(8))
    publish(folder, 8, text="veights")
    validation(folder, scorer).update()
    assert scorer.steps == [4, 8, 12, 8]


def test_remaining_time_is_that_of_the_usual_checkpoint() -> None:
    assert remaining_text([60.0], 2) == "  at most 2:00 left (2 checkpoints)"
    assert remaining_text([60.0, 10.0, 20.0], 1) == "  at most 0:15 left (1 checkpoint)"
    assert remaining_text([60.0], 0) == ""


# ── weights swapped in place ────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_predictions_are_those_of_a_fresh_load(
    tuning: str, tiny_model: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate(
        {
            **RECIPE,
            "model": {"path": str(tiny_model)},
            "tuning": tuning,
            "data": {"source": str(reviews), "max_length": 32},
        }
    )
    task = task_of(recipe)
    processor = load_processor(recipe, task)
    data = prepare(recipe, task, processor)
    model = build_model(recipe, task, processor)
    folder = RunFolder(tmp_path / "run")
    checkpoints = [ckpt.Checkpoint(folder.checkpoint(step), step) for step in (1, 2)]
    for checkpoint in checkpoints:
        torch.manual_seed(checkpoint.step)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.1)
        save_weights(model, model.state_dict(), checkpoint.model)
        (checkpoint.path / "manifest.json").write_text("{}")
    seen: list[torch.Tensor] = []
    scores_of = evaluator_module.scores_of

    def watch(task: Any, loss: Any, predictions: Any, *arguments: Any) -> Any:
        seen.append(torch.stack([torch.as_tensor(prediction) for prediction in predictions]))
        return scores_of(task, loss, predictions, *arguments)

    monkeypatch.setattr(evaluator_module, "scores_of", watch)
    evaluator = Evaluator()
    for checkpoint in (*checkpoints, checkpoints[0]):
        evaluator.score(recipe, checkpoint, "validation")
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    texts = data.splits["validation"].column("text")
    for checkpoint, predictions in zip(checkpoints, seen, strict=False):
        fresh = fresh_load(checkpoint.model, tuning).eval()
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        order = evaluator_module.length_sorted_batches(data.examples["validation"].lengths, recipe.evaluate.micro_batch)
        for indices in order:
            inputs = tokenizer(
                [texts[i] for i in indices], truncation=True, max_length=32, padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                assert torch.equal(fresh(**inputs).logits, predictions[torch.as_tensor(indices)])


def fresh_load(folder: Path, tuning: str) -> torch.nn.Module:
    """By transformers and PEFT alone."""
    if tuning == "full":
        return AutoModelForSequenceClassification.from_pretrained(folder)
    from peft import AutoPeftModelForSequenceClassification

    return AutoPeftModelForSequenceClassification.from_pretrained(folder)


def test_statistics_of_batch_norms_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    from sft_dist.tuning import load_weights

    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=2
    )
    model = ResNetForImageClassification(config)
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = []
    for number in (1, 2):
        model.train()
        for _ in range(number):
            model(images * number)  # changes running statistics and nothing else
        save_weights(model, model.state_dict(), tmp_path / str(number))
        logits.append(_logits(model, images))
    assert not torch.equal(*logits)
    for number in (1, 2, 1):
        load_weights(model, tmp_path / str(number))
        assert torch.equal(_logits(model, images), logits[number - 1])
    lacking = {
        name: value for name, value in load_file(tmp_path / "1/model.safetensors").items() if "running" not in name
    }
    (tmp_path / "3").mkdir()
    from safetensors.torch import save_file

    save_file(lacking, tmp_path / "3/model.safetensors")
    with pytest.raises(ValueError, match=r"lacks \d+ weights, such as .*running_mean"):
        load_weights(model, tmp_path / "3")


def _logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images).logits


def test_no_record_is_written_for_what_failed(folder: RunFolder) -> None:
    scorer = Scorer()

    def fail() -> None:
        raise KeyboardInterrupt

    scorer.before_answer[8] = fail
    with pytest.raises(KeyboardInterrupt):
        validation(folder, scorer).update()
    assert read_json(folder.evaluation / "step-00000004.validation.json") is not None
    assert not (folder.evaluation / "step-00000008.validation.json").exists()
    scorer.before_answer.clear()
    validation(folder, scorer).update()
    assert scorer.steps == [4, 8, 8, 12]


def test_a_best_checkpoint_that_training_deletes_is_passed_over(tmp_path: Path) -> None:
    validation = ValidationScores(None, {})  # type: ignore[arg-type]
    assert validation.exclude_damaged([Scored(RunFolder(tmp_path), 1, "weights", {})]) == []
