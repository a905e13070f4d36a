"""What is copied for a checkpoint stays as it was while training goes on, and saving leaves the model in training alone."""

import json
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from sft_dist.checkpoints import store as ckpt
from sft_dist.checkpoints.saver import Saver
from sft_dist.engines.base import Setup
from sft_dist.engines.replicated import Replicated
from sft_dist.recipe.files import write_json
from sft_dist.run.folder import RunFolder
from sft_dist.training.progress import Progress
from sft_dist.training.saving import _prune
from sft_dist.training.snapshot import Snapshot, restore
from sft_dist.tuning import load_weights
from tests.integration.killing import build_optimizer, build_schedule, build_tokenizer, loss_of

SMALL = BertConfig(
    vocab_size=512, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


def training_of(model, folder):
    """As much of a training as a snapshot asks for."""
    engine = Replicated(Setup("fp32", str(folder), {"name": "single"}))
    engine.prepare(model, build_optimizer)
    return SimpleNamespace(
        engine=engine, accelerator=engine.accelerator, progress=Progress(), schedule=build_schedule(engine.optimizer),
        processor=build_tokenizer(), task=SimpleNamespace(labels=["a", "b"]),
    )  # fmt: skip


def train(t, steps):
    for _ in range(steps):
        t.progress.step += 1
        t.engine.backward(loss_of(t.engine.model, t.progress.step))
        t.engine.step(1.0)
        t.schedule.step()


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


def test_what_is_written_is_the_step_it_was_taken_at_however_much_later(folder):
    t = training_of(BertForSequenceClassification(SMALL), folder.path)
    train(t, 2)
    expected = {name: value.clone() for name, value in t.engine.raw_model.state_dict().items()}
    disk = threading.Event()
    snapshot = Snapshot.take(t)

    def write(staging_dir):
        disk.wait()
        return snapshot.write(staging_dir)

    saver = Saver(folder, 1, 0, 1, lambda: None)
    saver.save(2, write)
    train(t, 3)
    disk.set()
    assert saver.finish().step == 2
    (checkpoint,) = ckpt.published(folder)
    assert ckpt.verify(checkpoint) == []
    saved = load_file(checkpoint.model / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in expected.items())
    assert checkpoint.trainer_state()["progress"]["step"] == 2
    # Going on from there comes to where the training is that went on.
    twin = training_of(BertForSequenceClassification(SMALL), folder.path)
    load_weights(twin.engine.raw_model, checkpoint.model)
    restore(checkpoint, twin.engine, twin.schedule)
    twin.progress = Progress.read(checkpoint.trainer_state()["progress"])
    train(twin, 3)
    assert twin.progress.step == t.progress.step == 5
    assert twin.schedule.get_last_lr() == t.schedule.get_last_lr()
    there = twin.engine.raw_model.state_dict()
    assert all(torch.equal(there[name], value) for name, value in t.engine.raw_model.state_dict().items())


def test_saving_changes_nothing_in_the_model_that_trains(folder, tmp_path):
    t = training_of(BertForSequenceClassification(SMALL), folder.path)
    train(t, 1)
    model = t.engine.raw_model
    before = (
        dict(vars(model.config)),
        model.config,
        {name: value.clone() for name, value in model.state_dict().items()},
    )
    (tmp_path / "aside").mkdir()
    Snapshot.take(t).write(tmp_path / "aside")
    assert model.config is before[1]
    assert vars(model.config) == before[0]
    assert all(torch.equal(before[2][name], value) for name, value in model.state_dict().items())
    saved = json.loads((tmp_path / "aside" / "model" / "config.json").read_text())
    assert saved["architectures"] == ["BertForSequenceClassification"]
    assert saved["dtype"] == "float32"


def test_the_folder_loads_as_any_hugging_face_model(folder, tmp_path):
    t = training_of(BertForSequenceClassification(SMALL), folder.path)
    train(t, 1)
    (tmp_path / "aside").mkdir()
    files = Snapshot.take(t).write(tmp_path / "aside")
    assert sorted(files) == sorted(path for path in (tmp_path / "aside").rglob("*") if path.is_file())
    again = BertForSequenceClassification.from_pretrained(tmp_path / "aside" / "model").eval()
    texts = torch.arange(2, 10)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=texts).logits, t.engine.raw_model.eval()(input_ids=texts).logits)


def test_tied_weights_are_copied_and_written_once(folder, tmp_path):
    t = training_of(BertForMaskedLM(SMALL), folder.path)
    weights = Snapshot.take(t).weights
    one, other = weights["bert.embeddings.word_embeddings.weight"], weights["cls.predictions.decoder.weight"]
    assert one.data_ptr() == other.data_ptr()
    assert one.data_ptr() != t.engine.raw_model.get_input_embeddings().weight.data_ptr()
    (tmp_path / "aside").mkdir()
    Snapshot.take(t).write(tmp_path / "aside")
    names = set(load_file(tmp_path / "aside" / "model" / "model.safetensors"))
    assert "cls.predictions.decoder.weight" not in names
    load_weights(BertForMaskedLM(SMALL), tmp_path / "aside" / "model")


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────────────
def kept(folder, steps, validated, keep_last, keep_points=(), direction="max", metric="accuracy"):
    """Steps on disk after the last of `steps` has been published."""
    for step in steps:
        staging_dir = ckpt.begin(folder, step, 1)
        ckpt.publish(folder, step, staging_dir, {})
    progress = Progress(validated={step: {metric: score} for step, score in validated.items()})
    t = SimpleNamespace(
        folder=folder, progress=progress, metric=metric, direction=direction, steps=SimpleNamespace(keep_points=keep_points)
    )  # fmt: skip
    _prune(t, keep_last)
    return [checkpoint.step for checkpoint in ckpt.published(folder)]


def test_the_best_and_the_last_are_kept(folder):
    assert kept(folder, [1, 2, 3, 4, 5], {1: 0.1, 2: 0.9, 3: 0.9, 4: 0.3, 5: 0.4}, keep_last=2) == [2, 4, 5]


def test_the_best_may_be_the_lowest(folder):
    assert kept(folder, [1, 2, 3], {1: 0.1, 2: 0.9, 3: 0.9}, keep_last=1, direction="min") == [1, 3]


def test_every_nth_is_kept(folder):
    scores = dict.fromkeys([1, 2, 3, 4, 5, 6], 0.5)
    assert kept(folder, [1, 2, 3, 4, 5, 6], scores, keep_last=1, keep_points=(2, 4, 6)) == [1, 2, 4, 6]


def test_an_unscored_checkpoint_is_kept(folder):
    assert kept(folder, [1, 2, 3, 4], {2: 0.5, 3: 0.4, 4: 0.3}, keep_last=1) == [1, 2, 4]


def test_an_undefined_score_is_no_reason_to_keep(folder):
    assert kept(folder, [1, 2, 3], {1: None, 2: 0.5, 3: 0.4}, keep_last=1) == [2, 3]


def test_the_scores_of_the_sweep_count(folder):
    folder.evaluation.mkdir()
    for step, score in ((1, 0.2), (2, 0.8)):
        record = {"step": step, "split": "validation", "checkpoint": "x", "scores": {"accuracy": score}}
        write_json(folder.evaluation / f"step-{step:08d}.validation.json", record)
    assert kept(folder, [1, 2, 3], {3: 0.5}, keep_last=1) == [2, 3]


def test_the_best_on_disk_stays_while_a_better_one_is_still_being_written(folder):
    # Step 4 has been validated and its checkpoint is under way: a kill now must still find the best of those there are.
    assert kept(folder, [1, 2, 3], {1: 0.7, 2: 0.1, 3: 0.2, 4: 0.9}, keep_last=1) == [1, 3]
