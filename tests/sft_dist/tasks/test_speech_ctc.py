"""CTC: its vocabulary, the frames that it needs, and how its outputs become text."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sft_dist.recipe.errors import UserError
from sft_dist.tasks.speech_ctc import needed_frames, spelled
from sft_dist.tasks.speech_recognition import SpeechRecognition
from tests.sft_dist.tasks.tiny_audio import encoded, recipe, rngs, tone, wav2vec2
from tests.sft_dist.tasks.tiny_speech import made, spoken


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return spoken(tmp_path_factory.mktemp("tones"))


def test_two_equal_symbols_need_a_frame_between_them():
    assert needed_frames([1, 2, 2, 3]) == 5


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
