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
from sft_dist.tasks.speech_recognition import CtcLoss, SpeechRecognition, needed_frames, spelled
from tests.sft_dist.tasks.tiny_audio import RATE, encoded, mean_loss, recipe, rngs, tone, wav2vec2, whisper

TEXTS = ["Low", "high", "low, low!", "high low"]
LOUD = {"probability": 1.0, "noise_snr": [0.0, 5.0], "speed": [0.8, 1.2], "time_masks": 3, "frequency_masks": 2}
MODELS = {"ctc": wav2vec2, "decoder": whisper}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A low or high tone for each word."""
    folder = tmp_path_factory.mktemp("tones")
    found = []
    for number, text in enumerate(TEXTS):
        path = tone(folder / f"{number}.wav", 300 if text.lower().startswith("low") else 2000, 0.4 + 0.15 * number)
        found.append({"audio": {"path": str(path), "bytes": None}, "text": text})
    return found


@pytest.fixture(scope="module", params=sorted(MODELS))
def folder(request, tmp_path_factory):
    return MODELS[request.param](tmp_path_factory.mktemp(request.param))


def made(folder, rows, **sections):
    """(task, processor, model, examples), in the order in which the product makes them."""
    task = SpeechRecognition(recipe("speech-recognition", folder, task={"max_seconds": 1.0}, **sections))
    processor = task.load_processor(str(folder))
    task.learn_labels(Rows(Dataset.from_dict({"text": [row["text"] for row in rows]})))
    examples = encoded(task, rows, processor)
    return task, processor, task.build_model(str(folder), None, {}, processor), examples


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
        expected += one if task.ctc else one * len(row["labels"])
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


def predicted(task, model, batch, processor):
    inputs, _ = task.collate(batch, processor, None)
    with torch.no_grad():
        return task.predict(model, inputs, task.forward(model, inputs), processor)


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
    with pytest.raises(UserError, match="row 3: more"):
        encoded(task, [*rows[:3], long], processor)


def test_the_task_can_be_sent_to_other_processes(folder, rows):
    task, processor, _, examples = made(folder, rows)
    columns = {"audio": [rows[1]["audio"]], "text": ["high"], ROW: [0]}
    sent = pickle.loads(pickle.dumps((task, processor)))
    assert sent[0].encode(columns, sent[1])["labels"] == [examples.at([1])[0]["labels"]]


def test_a_task_that_loaded_no_processor_makes_the_same_batches(folder, rows):
    """The judge of a sweep has one processor for the tasks of many recipes."""
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
    if task.ctc:  # the head is new
        assert any("lm_head" in name and "lora" not in name for name in learning), learning
    assert len(predicted(task, wrapped.eval(), examples.at(range(4)), processor)) == 4


# ── CTC ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_ctc_loss_by_hand():
    """Two frames, one symbol: the paths are aa, a-, -a."""
    p = torch.tensor([[0.4, 0.6], [0.3, 0.7]])  # (frames, symbols); 0 is the blank
    targets = {"labels": torch.tensor([[1]]), "frames": torch.tensor([2]), "label_lengths": torch.tensor([1])}
    found = CtcLoss(0).total(p.log()[None], targets)
    assert found.item() == pytest.approx(-np.log(0.6 * 0.7 + 0.6 * 0.3 + 0.4 * 0.7), rel=1e-5)


def test_ctc_needs_a_frame_between_equal_symbols():
    assert needed_frames([1, 2, 2, 3]) == 5
    for frames, finite in ((5, True), (4, False)):
        targets = {
            "labels": torch.tensor([[1, 2, 2, 3]]),
            "frames": torch.tensor([frames]),
            "label_lengths": torch.tensor([4]),
        }
        assert torch.isfinite(CtcLoss(0).total(torch.zeros(1, 5, 4), targets)) == finite


def test_a_model_without_vocabulary_gets_the_characters_of_the_transcripts(rows, tmp_path):
    task, processor, model, examples = made(wav2vec2(tmp_path), rows)
    assert task.labels == sorted("lowhig")
    assert len(processor.tokenizer) == model.config.vocab_size == 3 + 6
    assert model.config.pad_token_id == processor.tokenizer.pad_token_id == 0
    assert processor.tokenizer.decode(examples.at([2])[0]["labels"], group_tokens=False) == "low low"


def test_a_model_keeps_its_vocabulary(rows, tmp_path):
    _, processor, model, examples = made(wav2vec2(tmp_path, vocabulary="GHILOW'"), rows)
    assert model.config.vocab_size == 10
    assert processor.tokenizer.decode(examples.at([2])[0]["labels"], group_tokens=False) == "LOW LOW"


def test_a_text_that_the_vocabulary_cannot_write_is_an_error(rows, tmp_path):
    task = SpeechRecognition(recipe("speech-recognition", wav2vec2(tmp_path, vocabulary="xyz")))
    processor = task.load_processor(str(tmp_path))
    with pytest.raises(UserError, match="row 1: no character is in the model's vocabulary"):
        encoded(task, [{**rows[0], "text": "xyz"}, {**rows[1], "text": "low"}], processor)


@pytest.mark.parametrize(
    ("letters", "expected"),
    [("ABC'|", "BAB'C AC"), ("abc|", "bab c ac"), ("ABCabc.|", "Bab c ac.")],
)
def test_transcripts_are_spelled_in_the_vocabularys_letters(letters, expected):
    assert spelled("Bab’c ac.", set(letters)) == expected


def test_decoding_merges_repeats_and_leaves_out_blanks_and_the_unknown(rows, tmp_path):
    task, processor, _, examples = made(wav2vec2(tmp_path, vocabulary="ab"), [{**rows[0], "text": "ab"}])
    inputs, _ = task.collate(examples.at([0]), processor, None)
    path = [0, 3, 3, 0, 3, 4, 1, 2, 2, 4]  # - a a - a b ? | | b
    outputs = nn.functional.one_hot(torch.tensor([path + [0] * 9]), 5).float()
    assert task.predict(None, inputs, outputs, processor) == ["aab b"]


@pytest.mark.parametrize(("norm", "alike"), [("layer", True), ("group", False)])
def test_padding_changes_nothing_where_the_model_has_a_mask(rows, tmp_path, norm, alike):
    """Models with group norm know no mask: documented, not mended."""
    task, processor, model, examples = made(wav2vec2(tmp_path, norm=norm), rows)
    model.eval()
    with torch.no_grad():
        alone_inputs, _ = task.collate(examples.at([0]), processor, None)
        beside_inputs, _ = task.collate(examples.at([0, 3]), processor, None)
        alone, beside = task.forward(model, alone_inputs)[0], task.forward(model, beside_inputs)[0]
    assert ("attention_mask" in alone_inputs) == alike
    torch.testing.assert_close(
        alone_inputs["input_values"][0], beside_inputs["input_values"][0, : len(alone_inputs["input_values"][0])]
    )
    assert torch.allclose(alone, beside[: len(alone)], rtol=1e-3, atol=1e-5) == alike


def test_a_faster_recording_still_has_room_for_its_text(tmp_path):
    """Ten symbols in just enough frames: every speed-up that would not fit is left out."""
    path = tone(tmp_path / "short.wav", 500, 0.23)
    row = {"audio": {"path": str(path), "bytes": None}, "text": "abcdefghij"}
    fast = {"probability": 1.0, "speed": [1.0, 2.0]}
    task, processor, _, examples = made(wav2vec2(tmp_path / "model"), [row], data={"augment": {"audio": fast}})
    lengths = set()
    for seed in range(30):
        _, targets = task.collate(examples.at([0]), processor, rngs(1, seed))
        lengths.add(targets["frames"].item())
    assert min(lengths) >= 10


# ── Whisper ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_decoder_starts_with_its_token_and_ends_with_its_end(rows, tmp_path):
    task, processor, _, examples = made(whisper(tmp_path), rows)
    inputs, targets = task.collate(examples.at([0]), processor, None)
    spoken = processor.tokenizer.convert_ids_to_tokens(inputs["decoder_input_ids"][0].tolist())
    assert spoken == ["<|startoftranscript|>", "<|notimestamps|>", "L", "o", "w"]
    wanted = processor.tokenizer.convert_ids_to_tokens(targets["labels"][0].tolist())
    assert wanted == ["<|notimestamps|>", "L", "o", "w", "<|endoftext|>"]


def test_a_multilingual_model_is_told_its_language(rows, tmp_path):
    folder = whisper(tmp_path, multilingual=True)
    task = SpeechRecognition(recipe("speech-recognition", folder, task={"max_seconds": 1.0, "language": "de"}))
    processor = task.load_processor(str(folder))
    labels = task.encode({"audio": [rows[0]["audio"]], "text": ["Low"], ROW: [0]}, processor)["labels"][0]
    tokens = processor.tokenizer.convert_ids_to_tokens(labels)
    assert tokens == ["<|de|>", "<|transcribe|>", "<|notimestamps|>", "L", "o", "w", "<|endoftext|>"]
    model = task.build_model(str(folder), None, {}, processor)
    assert (model.generation_config.language, model.generation_config.task) == ("de", "transcribe")
    written = model.generate(torch.zeros(1, 16, 100), max_new_tokens=3)
    assert isinstance(predicted(task, model.eval(), [{"audio": rows[0]["audio"]}], processor)[0], str)
    assert written.shape[0] == 1


@pytest.mark.parametrize(
    ("multilingual", "language", "message"),
    [(True, None, "say which language"), (True, "xx", "no language"), (False, "de", "English only")],
)
def test_a_language_that_does_not_fit_is_refused(tmp_path, multilingual, language, message):
    settings = {"max_seconds": 1.0, **({"language": language} if language else {})}
    task = SpeechRecognition(recipe("speech-recognition", whisper(tmp_path, multilingual), task=settings))
    with pytest.raises(UserError, match=message):
        task.load_processor(str(tmp_path))


def test_more_seconds_than_the_model_hears_are_refused(tmp_path):
    task = SpeechRecognition(recipe("speech-recognition", whisper(tmp_path), task={"max_seconds": 2.0}))
    with pytest.raises(UserError, match="hears 1 seconds at most"):
        task.load_processor(str(tmp_path))


def test_a_changed_recording_stays_within_what_whisper_hears(tmp_path):
    path = tone(tmp_path / "long.wav", 500, 0.95)
    row = {"audio": {"path": str(path), "bytes": None}, "text": "low"}
    slow = {"probability": 1.0, "speed": [0.5, 1.5], "shift": 1.0}
    task, processor, _, _ = made(whisper(tmp_path / "model"), [row], data={"augment": {"audio": slow}})
    fewest, most = task._limits([1, 2], processor.feature_extractor)
    assert (fewest, most) == (1, RATE)
