"""Speech recognition with tiny models that write by CTC and by a decoder."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from sft_dist.data.rows import ROW, Rows
from sft_dist.recipe.errors import UserError
from sft_dist.tasks.speech_ctc import Ctc
from sft_dist.tasks.speech_recognition import SpeechRecognition
from tests.sft_dist.tasks.tiny_audio import encoded, mean_loss, recipe, rngs, wav2vec2, whisper
from tests.sft_dist.tasks.tiny_speech import TEXTS, made, predicted, spoken

LOUD = {"probability": 1.0, "noise_snr": [0.0, 5.0], "speed": [0.8, 1.2], "time_masks": 3, "frequency_masks": 2}
MODELS = {"ctc": wav2vec2, "decoder": whisper}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return spoken(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module", params=sorted(MODELS))
def folder(request, tmp_path_factory):
    return MODELS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("seed", [None, 1])
def test_the_loss_of_a_batch_is_the_same_in_one_piece_and_in_four(folder, rows, seed):
    task, processor, model, examples = made(folder, rows, data={"augment": {"audio": LOUD}})
    loss = task.build_loss(examples)
    whole = mean_loss(task, model, loss, examples, processor, 1, seed)
    assert whole == pytest.approx(mean_loss(task, model, loss, examples, processor, 4, seed), rel=1e-5)


def test_the_loss_is_the_librarys_own(folder, rows):
    """transformers' loss of one example: a sum (CTC) or a mean over its tokens."""
    task, processor, model, examples = made(folder, rows)
    model.eval()
    expected = 0.0
    for row in examples.at(range(4)):
        inputs, _ = task.collate([row], processor, None)
        known = {name: inputs[name] for name in ("input_values", "input_features", "attention_mask") if name in inputs}
        with torch.no_grad():
            one = model(**known, labels=torch.tensor([row["labels"]])).loss.item()
        expected += one if isinstance(task.recognizer, Ctc) else one * len(row["labels"])
    tokens = sum(len(row["labels"]) for row in examples.at(range(4)))
    found = mean_loss(task, model, task.build_loss(examples), examples, processor, 2, None)
    assert found == pytest.approx(expected / tokens, rel=1e-4)


def test_training_draws_nothing_but_from_the_examples_generators(folder, rows):
    task, processor, model, examples = made(folder, rows, data={"augment": {"audio": LOUD}})
    model.train()

    def outputs(state):
        np.random.seed(state)
        inputs, _ = task.collate(examples.at(range(4)), processor, rngs(4))
        torch.manual_seed(0)
        return task.forward(model, inputs)

    assert torch.equal(outputs(1), outputs(2))


def test_every_weight_gets_a_gradient_in_every_step(folder, rows):
    task, processor, model, examples = made(folder, rows)
    inputs, targets = task.collate(examples.at(range(4)), processor, rngs(4))
    task.build_loss(examples).total(task.forward(model.train(), inputs), targets).backward()
    assert not [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]


@pytest.mark.slow
def test_it_learns_what_the_tones_say(folder, rows, tmp_path):
    rows = rows[:2]
    task, processor, model, examples = made(folder, rows)
    loss = task.build_loss(examples)
    inputs, targets = task.collate(examples.at(range(2)), processor, rngs(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        (loss.total(task.forward(model, inputs), targets) / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    predictions = predicted(task, model, examples.at(range(2)), processor)
    assert task.score(predictions, examples, processor) == {"wer": 0.0, "cer": 0.0}, predictions  # untrained: 1 or more

    # What is saved hears the same from files alone.
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = SpeechRecognition(recipe("speech-recognition", folder, task={"max_seconds": 1.0}))
    again.labels = task.labels
    other_processor = again.load_processor(str(tmp_path))
    other = again.build_model(str(tmp_path), None, {}, other_processor)
    columns = again.encode({"audio": [row["audio"] for row in rows]}, other_processor)
    assert "labels" not in columns
    batch = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    heard = predicted(again, other.eval(), batch, other_processor)
    assert heard == predictions
    assert again.describe(heard, other_processor)[0] == {"text": predictions[0]}


def test_rows_that_cannot_be_used_are_dropped_with_the_reason(folder, rows):
    task = SpeechRecognition(recipe("speech-recognition", folder, task={"max_seconds": 0.5}))
    assert task.read({**rows[0], "text": "..."}, 1) == "empty text"
    assert task.read({"audio": None, "text": "low"}, 1) == "no audio"
    assert task.read(rows[3], 1) == "longer than 0.5 seconds"
    assert task.read(rows[0], 1)["seconds"] == pytest.approx(0.4)


def test_more_than_can_be_written_is_an_error_that_names_the_rows(folder, rows):
    task = SpeechRecognition(recipe("speech-recognition", folder, task={"max_seconds": 1.0}))
    processor = task.load_processor(str(folder))
    long = {**rows[0], "text": "a much longer text than anybody could say in four tenths of a second"}
    task.learn_labels(Rows(Dataset.from_dict({"text": [long["text"], *TEXTS]})))
    with pytest.raises(UserError, match=r"row 3: (the transcript is longer|more than the 40 tokens)"):
        encoded(task, [*rows[:3], long], processor)


def test_the_task_can_be_sent_to_other_processes(folder, rows):
    task, processor, _, examples = made(folder, rows)
    columns = {"audio": [rows[1]["audio"]], "text": ["high"], ROW: [0]}
    sent = pickle.loads(pickle.dumps((task, processor)))
    assert sent[0].encode(columns, sent[1])["labels"] == [examples.at([1])[0]["labels"]]


def test_a_task_that_loaded_no_processor_makes_the_same_batches(folder, rows):
    """The evaluation of a sweep has one processor for the tasks of many recipes."""
    task, processor, _, examples = made(folder, rows)
    other = SpeechRecognition(recipe("speech-recognition", folder, task={"max_seconds": 1.0}))
    assert other.build_loss(examples) == task.build_loss(examples)
    batches = [one.collate(examples.at(range(4)), processor, None) for one in (task, other)]
    for first, second in zip(*({**inputs, **targets} for inputs, targets in batches), strict=True):
        assert first == second
        assert torch.equal(batches[0][0].get(first, torch.ones(1)), batches[1][0].get(first, torch.ones(1)))


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_adapters_learn_and_write(folder, rows, method):
    from sft_dist.recipe.schema import Recipe
    from sft_dist.tuning import apply_tuning

    task, processor, model, examples = made(folder, rows)
    given = {
        "lora": {"method": "lora", "r": 2},
        "ia3": {"method": "ia3", "target_modules": ["k_proj"], "feedforward_modules": []},
    }
    tuning = Recipe.model_validate({**task.recipe.model_dump(exclude_unset=True), "tuning": given[method]}).tuning
    wrapped = apply_tuning(model, tuning, task.peft_task)
    inputs, targets = task.collate(examples.at(range(4)), processor, rngs(4))
    task.build_loss(examples).total(task.forward(wrapped.train(), inputs), targets).backward()
    learning = {name for name, one in wrapped.named_parameters() if one.requires_grad}
    assert learning
    assert not [name for name, one in wrapped.named_parameters() if one.requires_grad and one.grad is None]
    if isinstance(task.recognizer, Ctc):  # the head is new
        assert any("lm_head" in name and "lora" not in name for name in learning), learning
    assert len(predicted(task, wrapped.eval(), examples.at(range(4)), processor)) == 4
