"""Speech recognition by CTC (Graves et al. 2006): models of waveforms, such as wav2vec2, that give a symbol to every frame."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoProcessor,
    PreTrainedModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
)
from transformers.utils import cached_file

from sft_dist.losses.speech import CtcLoss
from sft_dist.losses.tokens import padded
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import audio
from sft_dist.tasks.loading import load_pretrained

_SPECIAL = ("[PAD]", "[UNK]", "|")  # the blank, unknown characters, the end of a word
_TOO_SHORT = "the transcript is longer than the audio has CTC frames"


@dataclass(frozen=True)
class Ctc:
    """A model with one output per frame; its transcripts need no decoder."""

    recipe: Recipe
    config: Any  # of the model
    characters: list[str]  # the vocabulary of a model that comes without one

    def load_processor(self, source: str, **options: Any) -> Any:
        task: Any = self.recipe.task
        if task.language is not None:
            raise UserError(Problem("is for multilingual Whisper models", "task.language", value=task.language))
        if not audio.takes_waveforms(self.config):
            kind = self.config.model_type
            hint = "wav2vec2, hubert, wavlm, data2vec-audio, sew, unispeech; or Whisper"
            raise UserError(Problem("CTC is for models that take waveforms", "model.path", value=kind, hint=hint))
        if _has_vocabulary(source, **options):
            processor = AutoProcessor.from_pretrained(source, **options)
        else:
            extractor = AutoFeatureExtractor.from_pretrained(source, **options)
            processor = Wav2Vec2Processor(extractor, ctc_tokenizer(self.characters))
        self.config.pad_token_id = processor.tokenizer.pad_token_id  # the blank, by the library's custom
        return processor

    def _completed(self, processor: Any) -> Any:
        """Adds the vocabulary to a processor that was loaded before the transcripts were read."""
        if set(processor.tokenizer.get_vocab()) == set(_SPECIAL):
            processor.tokenizer = ctc_tokenizer(self.characters)
        return processor

    # ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────
    def tokenize(self, texts: list[str], processor: Any) -> list[list[int]]:
        tokenizer = self._completed(processor).tokenizer
        vocabulary = set(tokenizer.get_vocab())
        return tokenizer([spelled(text, vocabulary) for text in texts]).input_ids

    def lengths(self, num_frames: list[int], labels: list[list[int]]) -> list[int]:
        return num_frames

    def faults(self, labels: list[list[int]], seconds: list[float], processor: Any) -> Iterator[tuple[str, list[int]]]:
        unknown = processor.tokenizer.unk_token_id
        unwritable = [index for index, ids in enumerate(labels) if not set(ids) - {unknown}]
        yield "no character is in the model's vocabulary", unwritable
        # One sample less than the header says: resampling may round down.
        samples = [int(duration * processor.feature_extractor.sampling_rate) - 1 for duration in seconds]
        frames = audio.frames_of(self.config, samples)
        yield _TOO_SHORT, [index for index, n in enumerate(frames) if n < needed_frames(labels[index])]

    def sample_limits(self, labels: list[int], extractor: Any) -> tuple[int, int | None]:
        return (needed_frames(labels) + 1) * math.prod(self.config.conv_stride), None

    def batch(
        self, inputs: dict[str, Tensor], sounds: list[np.ndarray], labels: list[list[int]] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Raises ValueError when a recording is too short for its transcript."""
        inputs = {**inputs, "samples": torch.tensor([len(sound) for sound in sounds])}
        if labels is None:
            return inputs, None
        frames = audio.frames_of(self.config, inputs["samples"].numpy())
        if any(n < needed_frames(ids) for n, ids in zip(frames, labels, strict=True)):
            raise ValueError(_TOO_SHORT)
        lengths = torch.tensor([len(ids) for ids in labels])
        return inputs, {"labels": padded(labels, 0), "label_lengths": lengths, "frames": torch.from_numpy(frames)}

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        settings = audio.model_settings(self.config, self.recipe)
        tokenizer = self._completed(processor).tokenizer
        settings |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        return load_pretrained(AutoModelForCTC, folder, revision, config, None, settings, **options)

    def build_loss(self) -> CtcLoss:
        return CtcLoss(self.config.pad_token_id)

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        return model(**{name: value for name, value in inputs.items() if name != "samples"}).logits.float()

    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Tensor, processor: Any) -> list[str]:
        frames = audio.frames_of(self.config, inputs["samples"].cpu().numpy())
        best = outputs.argmax(dim=-1).cpu()
        best[best == processor.tokenizer.unk_token_id] = processor.tokenizer.pad_token_id  # nothing to write
        return [processor.tokenizer.decode(ids[:n].tolist()) for ids, n in zip(best, frames, strict=True)]


# ── vocabulary ──────────────────────────────────────────────────────────────────────────────────────────────────────
def ctc_tokenizer(characters: list[str]) -> Wav2Vec2CTCTokenizer:
    """Builds a tokenizer with one symbol a character, after those for the blank, the unknown and the end of a word."""
    vocabulary = {symbol: number for number, symbol in enumerate([*_SPECIAL, *characters])}
    with tempfile.TemporaryDirectory(prefix="sft-dist-") as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(
            str(file), bos_token=None, eos_token=None, pad_token="[PAD]", unk_token="[UNK]", word_delimiter_token="|"
        )


def spelled(text: str, vocabulary: set[str]) -> str:
    """Converts a transcript to the letters of a CTC vocabulary: in its case, without punctuation that it lacks."""
    letters = [symbol for symbol in vocabulary if len(symbol) == 1 and symbol.isalpha()]
    if not any(letter.islower() for letter in letters):
        text = text.upper()
    elif not any(letter.isupper() for letter in letters):
        text = text.lower()
    return " ".join(
        "".join(
            character if character in vocabulary or character.isalnum() else _plain(character, vocabulary)
            for character in text
        ).split()
    )


def _plain(character: str, vocabulary: set[str]) -> str:
    """Replaces a character that is neither in the vocabulary nor a letter by an apostrophe or a space."""
    return "'" if character in "’‘ʼ" and "'" in vocabulary else " "


def needed_frames(labels: list[int]) -> int:
    """Frames that CTC needs: one for every symbol, and one between two equal symbols."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def _has_vocabulary(source: str, **options: Any) -> bool:
    pinned = {"revision": options.get("revision"), "_raise_exceptions_for_missing_entries": False}
    return any(cached_file(source, name, **pinned) for name in ("vocab.json", "tokenizer.json"))
