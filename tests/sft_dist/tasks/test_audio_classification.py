"""Audio classification with tiny models of each architecture."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from sft_dist.data.rows import Rows
from sft_dist.recipe.errors import UserError
from sft_dist.tasks.audio_classification import AudioClassification, cut
from tests.sft_dist.tasks.tiny_audio import RATE, ast, encoded, mean_loss, recipe, rngs, tone, wav2vec2, whisper

MODELS = {"wav2vec2": wav2vec2, "whisper": whisper, "ast": ast}
LOUD = {"probability": 1.0, "noise_snr": [0.0, 5.0], "shift": 0.2, "time_masks": 3, "frequency_masks": 2}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Low and high tones of different lengths and rates."""
    folder = tmp_path_factory.mktemp("tones")
    found = []
    for number in range(8):
        hertz, seconds, rate = (300, 2000)[number % 2], 0.2 + 0.1 * number, (RATE, 8000)[number // 4]
        path = tone(folder / f"{number}.wav", hertz + number, seconds, rate)
        found.append({"audio": {"path": str(path), "bytes": None}, "label": ("low", "high")[number % 2]})
    return found


@pytest.fixture(scope="module", params=sorted(MODELS))
def folder(request, tmp_path_factory):
    return MODELS[request.param](tmp_path_factory.mktemp(request.param))


def made(folder, rows, **sections):
    """(task, processor, model, examples)"""
    task = AudioClassification(recipe("audio-classification", folder, **sections))
    task.labels = ["high", "low"]
    processor = task.load_processor(str(folder))
    model = task.build_model(str(folder), None, {}, processor)
    return task, processor, model, encoded(task, rows, processor)


@pytest.mark.parametrize("seed", [None, 1])
def test_the_loss_of_a_batch_is_the_same_in_one_piece_and_in_four(folder, rows, seed):
    augment = {"data": {"augment": {"audio": LOUD}}}
    task, processor, model, examples = made(folder, rows, **augment)
    loss = task.build_loss(examples)
    whole = mean_loss(task, model, loss, examples, processor, 1, seed)
    assert whole == pytest.approx(mean_loss(task, model, loss, examples, processor, 4, seed), rel=1e-5)


def test_augmentation_is_in_training_alone_and_repeats(folder, rows):
    task, processor, _, examples = made(folder, rows, data={"augment": {"audio": LOUD}})
    some = examples.at(range(8))

    def first_input(drawn):
        inputs, _ = task.collate(some, processor, drawn)
        return next(iter(inputs.values()))

    assert torch.equal(first_input(None), first_input(None))
    assert torch.equal(first_input(rngs(8, 1)), first_input(rngs(8, 1)))
    assert not torch.equal(first_input(rngs(8, 1))[:, :1000], first_input(rngs(8, 2))[:, :1000])


def test_training_draws_nothing_but_from_the_examples_generators(folder, rows):
    """transformers' models mask with NumPy's global state, which no checkpoint holds."""
    task, processor, model, examples = made(folder, rows, data={"augment": {"audio": LOUD}})
    model.train()

    def logits(state):
        np.random.seed(state)
        inputs, _ = task.collate(examples.at(range(8)), processor, rngs(8))
        torch.manual_seed(0)
        return task.forward(model, inputs)

    assert torch.equal(logits(1), logits(2))


def test_every_weight_gets_a_gradient_in_every_step(folder, rows):
    """Otherwise processes that share the work wait for each other."""
    task, processor, model, examples = made(folder, rows)
    inputs, targets = task.collate(examples.at(range(8)), processor, rngs(8))
    task.build_loss(examples).total(task.forward(model.train(), inputs), targets).backward()
    assert not [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]


@pytest.mark.slow
def test_it_learns_tones(folder, rows):
    task, processor, model, examples = made(folder, rows)
    loss = task.build_loss(examples)
    inputs, targets = task.collate(examples.at(range(8)), processor, rngs(8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        loss.total(task.forward(model, inputs), targets).backward()
        optimizer.step()
    model.eval()
    inputs, _ = task.collate(examples.at(range(8)), processor, None)
    with torch.no_grad():
        predictions = task.predict(model, inputs, task.forward(model, inputs), processor)
    scores = task.score(predictions, examples, processor)
    assert scores["uar"] == scores["accuracy"] == 1.0  # chance: 0.5
    assert [said["label"] for said in task.describe(predictions, processor)] == [row["label"] for row in rows]


def test_labels_are_in_the_saved_config_and_the_saved_model_answers_alike(folder, rows, tmp_path):
    task, processor, model, _ = made(folder, rows, task={"max_seconds": 1.0})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AudioClassification(recipe("audio-classification", folder, task={"max_seconds": 1.0}))
    again.labels = ["high", "low"]
    other_processor = again.load_processor(str(tmp_path))
    other = again.build_model(str(tmp_path), None, {}, other_processor)
    assert other.config.id2label == {0: "high", 1: "low"}
    inputs = task.encode({"audio": [row["audio"] for row in rows]}, processor)
    assert "label" not in inputs
    batch = [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]
    with torch.no_grad():
        before = task.forward(model.eval(), task.collate(batch, processor, None)[0])
        after = again.forward(other.eval(), again.collate(batch, other_processor, None)[0])
    torch.testing.assert_close(before, after)


def test_long_recordings_are_cut_at_random_in_training_and_in_the_middle_otherwise():
    sound = np.arange(100)
    assert cut(sound, 10, None).tolist() == list(range(45, 55))
    starts = {int(cut(sound, 10, np.random.default_rng(seed))[0]) for seed in range(300)}
    assert min(starts) < 5
    assert max(starts) > 85
    assert len(cut(sound, 100, np.random.default_rng(0))) == 100


def test_cut_recordings_are_counted(rows, tmp_path):
    _, _, _, examples = made(wav2vec2(tmp_path), rows, task={"max_seconds": 0.55})
    assert examples.num_truncated == 4
    assert examples.lengths.max() == 28  # 0.55 s of 50 frames


def test_whisper_hears_no_longer_than_asked(rows, tmp_path):
    _, processor, model, _ = made(whisper(tmp_path, seconds=3), rows, task={"max_seconds": 0.9})
    assert processor.chunk_length == 1
    assert model.config.max_source_positions == 50
    whole = model.__class__.from_pretrained(tmp_path).encoder.embed_positions.weight
    assert whole.shape[0] == 150
    assert torch.equal(model.encoder.embed_positions.weight, whole[:50])


def test_a_short_recording_beside_a_long_one_is_answered_alike(rows, tmp_path):
    task, processor, model, examples = made(wav2vec2(tmp_path), rows)
    model.eval()
    with torch.no_grad():
        alone = task.forward(model, task.collate(examples.at([0]), processor, None)[0])
        beside = task.forward(model, task.collate(examples.at([0, 7]), processor, None)[0])
    torch.testing.assert_close(alone[0], beside[0], rtol=1e-4, atol=1e-5)


def test_class_weights_and_focal_loss(rows, tmp_path):
    folder = wav2vec2(tmp_path)
    for loss in ({"name": "cross-entropy", "class_weights": {"low": 3.0}}, {"name": "focal", "gamma": 2.0}):
        task, processor, model, examples = made(folder, rows, train={"loss": loss})
        built = task.build_loss(examples)
        assert np.isfinite(mean_loss(task, model, built, examples, processor, 2, None))
    assert task.weights(task.build_loss(examples), examples).tolist() == [1.0] * 8


def test_rows_that_cannot_be_used_are_dropped_or_named(rows, tmp_path):
    task = AudioClassification(recipe("audio-classification", wav2vec2(tmp_path)))
    assert task.read({"audio": rows[0]["audio"], "label": None}, 3) == "no label"
    assert task.read({"audio": None, "label": "low"}, 3) == "no audio"
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, or not")
    with pytest.raises(UserError, match=r"row 3: .*broken\.wav: not a sound"):
        task.read({"audio": {"path": str(broken), "bytes": None}, "label": "low"}, 3)
    with pytest.raises(UserError, match=r"row 3: .*absent\.wav"):
        task.read({"audio": {"path": str(tmp_path / "absent.wav"), "bytes": None}, "label": "low"}, 3)


def test_copies_are_duplicates_wherever_they_lie(rows, tmp_path):
    task = AudioClassification(recipe("audio-classification", wav2vec2(tmp_path)))
    with open(rows[0]["audio"]["path"], "rb") as file:
        copy = {"path": "elsewhere.wav", "bytes": file.read()}
    assert task.identity({"audio": copy}) == task.identity(rows[0]) != task.identity(rows[1])


def test_labels_are_learned_in_order(rows, tmp_path):
    task = AudioClassification(recipe("audio-classification", wav2vec2(tmp_path)))
    processor = task.load_processor(str(tmp_path))
    task.labels = []
    read = [task.read(row, number) for number, row in enumerate(rows)]
    from datasets import Dataset

    task.learn_labels(Rows(Dataset.from_dict({"label": [row["label"] for row in read]})))
    assert task.labels == ["high", "low"]
    assert pickle.loads(pickle.dumps(task)).encode({"audio": [rows[0]["audio"]], "label": ["low"]}, processor)[
        "label"
    ] == [1]


def test_a_model_that_knows_other_classes_gets_a_new_head(rows, tmp_path):
    task = AudioClassification(recipe("audio-classification", ast(tmp_path)))
    task.labels = ["a", "b", "c"]
    model = task.build_model(str(tmp_path), None, {}, task.load_processor(str(tmp_path)))
    assert model.classifier.dense.out_features == 3


def test_masks_belong_to_the_augmentation(rows, tmp_path):
    with pytest.raises(UserError, match=r"model\.config\.mask_time_prob") as found:
        made(wav2vec2(tmp_path), rows, model={"config": {"mask_time_prob": 0.1}})
    assert "data.augment.audio" in found.value.render()
