"""Whisper: the tokens around a transcript, its language, and how long a recording may be."""

from __future__ import annotations

import pytest
import torch

from sft_dist.data.rows import ROW
from sft_dist.recipe.errors import UserError
from sft_dist.tasks.speech_recognition import SpeechRecognition
from tests.sft_dist.tasks.tiny_audio import RATE, recipe, tone, whisper
from tests.sft_dist.tasks.tiny_speech import made, predicted, spoken


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return spoken(tmp_path_factory.mktemp("tones"))


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
    [(True, None, "name the language"), (True, "xx", "no language"), (False, "de", "English only")],
)
def test_a_language_that_does_not_fit_is_refused(tmp_path, multilingual, language, message):
    settings = {"max_seconds": 1.0, **({"language": language} if language else {})}
    task = SpeechRecognition(recipe("speech-recognition", whisper(tmp_path, multilingual), task=settings))
    with pytest.raises(UserError, match=message):
        task.load_processor(str(tmp_path))


def test_more_seconds_than_the_model_hears_are_refused(tmp_path):
    task = SpeechRecognition(recipe("speech-recognition", whisper(tmp_path), task={"max_seconds": 2.0}))
    with pytest.raises(UserError, match="takes at most 1 seconds"):
        task.load_processor(str(tmp_path))


def test_a_changed_recording_stays_within_what_whisper_hears(tmp_path):
    path = tone(tmp_path / "long.wav", 500, 0.95)
    row = {"audio": {"path": str(path), "bytes": None}, "text": "low"}
    slow = {"probability": 1.0, "speed": [0.5, 1.5], "shift": 1.0}
    task, processor, _, _ = made(whisper(tmp_path / "model"), [row], data={"augment": {"audio": slow}})
    fewest, most = task.recognizer.sample_limits([1, 2], processor.feature_extractor)
    assert (fewest, most) == (1, RATE)
