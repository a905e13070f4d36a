"""Speech recognition: the text of a recording, by CTC (Graves et al. 2006; models like wav2vec2) or from a decoder
(Whisper, arXiv 2212.04356). The model's config decides between them.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Features, Value
from torch import Tensor, nn
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
)
from transformers.models.whisper.modeling_whisper import shift_tokens_right
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE
from transformers.utils import cached_file

from sft_dist.data.augment.audio import augment_sound
from sft_dist.metrics.audio import transcript_scores
from sft_dist.metrics.transcripts import comparable
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import audio
from sft_dist.tasks.base import BaseTask, Rngs
from sft_dist.tasks.loading import load_pretrained

if TYPE_CHECKING:
    from sft_dist.data.rows import Examples, Rows

log = logging.getLogger("sft_dist")

IGNORED = -100  # target of padding, as cross-entropy has it
_ENGLISH_VOCABULARY = 51864  # of Whisper's .en models; the others have more
_MOST_NAMED = 16


@dataclass(frozen=True)
class CtcLoss:
    """-log of the probability of all alignments, summed over utterances."""

    blank: int

    def total(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:  # (batch, frames, symbols) -> ()
        # On a GPU its backward pass has no deterministic form; the tensors are small.
        device = "cpu" if torch.are_deterministic_algorithms_enabled() else outputs.device
        log_p = F.log_softmax(outputs.float(), dim=-1).transpose(0, 1).to(device)
        labels, frames, lengths = (targets[name].to(device) for name in ("labels", "frames", "label_lengths"))
        return F.ctc_loss(log_p, labels, frames, lengths, blank=self.blank, reduction="sum").to(outputs.device)


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy of the transcript's tokens, each after the true ones before it."""

    def total(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:  # (batch, tokens, vocabulary) -> ()
        return F.cross_entropy(
            outputs.flatten(0, 1), targets["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
        )


class SpeechRecognition(audio.KnowsConfig, BaseTask):
    """`labels` are the characters of the transcripts: the vocabulary of a CTC model that comes without one."""

    pipeline_tag = "automatic-speech-recognition"
    input_roles = ("audio",)
    text_roles = ("text",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        task: Any = recipe.task
        self.max_seconds: float = task.max_seconds
        self.language: str | None = task.language
        self.num_beams: int = task.num_beams
        self.augment = recipe.data.augment.audio
        text = Value("large_string")
        self.row_features = Features({"audio": audio.AUDIO, "seconds": Value("float64"), "text": text})
        self.encoded_features = Features({"audio": audio.AUDIO})

    @property
    def ctc(self) -> bool:
        return not self.config.is_encoder_decoder

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        if not comparable(row["text"]):
            return "empty text"
        if row["audio"] is None:
            return audio.NO_AUDIO
        seconds = audio.seconds_in_row(row, number)
        if seconds > self.max_seconds:
            return f"longer than {self.max_seconds:g} seconds"
        return {"audio": row["audio"], "seconds": seconds, "text": row["text"]}

    def identity(self, row: dict[str, Any]) -> bytes:
        return audio.content_of(row["audio"])

    def learn_labels(self, train: Rows) -> None:
        if not self.labels:
            self.labels = sorted({character for text in train.column("text") for character in comparable(text)} - {" "})

    # ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────
    def load_processor(self, source: str, **options: Any) -> Any:
        """A processor with `feature_extractor` and `tokenizer`. Raises UserError when the model cannot be used so."""
        self._config = audio.config_of(source, self.recipe, **options)
        if not self.ctc:
            return self._for_decoder(AutoProcessor.from_pretrained(source, **options), source, **options)
        if self.language is not None:
            raise UserError(Problem("is for multilingual Whisper models", "task.language", value=self.language))
        if not audio.takes_waveforms(self.config):
            kind = self.config.model_type
            hint = "wav2vec2, hubert, wavlm, data2vec-audio, sew, unispeech; or Whisper"
            raise UserError(Problem("CTC is for models that take waveforms", "model.path", value=kind, hint=hint))
        if _has_vocabulary(source, **options):
            processor = AutoProcessor.from_pretrained(source, **options)
        else:
            extractor = AutoFeatureExtractor.from_pretrained(source, **options)
            processor = Wav2Vec2Processor(extractor, ctc_tokenizer(self.labels))
        self.config.pad_token_id = processor.tokenizer.pad_token_id  # the blank, by the library's custom
        return processor

    def _for_decoder(self, processor: Any, source: str, **options: Any) -> Any:
        window = audio.window_of(processor.feature_extractor)
        if self.max_seconds > window:
            message = f"the model hears {window:g} seconds at most"
            raise UserError(Problem(message, "task.max_seconds", value=f"{self.max_seconds:g}"))
        if self.config.model_type != "whisper":
            return processor
        if not _is_multilingual(source, self.config, **options):
            if self.language not in (None, "en", "english"):
                raise UserError(Problem("this model knows English only", "task.language", value=self.language))
            processor.tokenizer.set_prefix_tokens(language=None, task=None, predict_timestamps=False)
            return processor
        code = TO_LANGUAGE_CODE.get((self.language or "").lower(), self.language)
        if code not in LANGUAGES:
            message = (
                "say which language is spoken: the model knows many" if code is None else "no language of the model"
            )
            raise UserError(Problem(message, "task.language", value=self.language, valid=tuple(sorted(LANGUAGES))))
        processor.tokenizer.set_prefix_tokens(language=code, task="transcribe", predict_timestamps=False)
        return processor

    def encode(self, rows: dict[str, list[Any]], processor: Any) -> dict[str, list[Any]]:
        """Raises UserError naming the rows whose text does not fit what the model can write for them."""
        seconds = rows.get("seconds") or [audio.seconds_of(value) for value in rows["audio"]]
        lengths = [max(1, round(duration * audio.FRAMES_PER_SECOND)) for duration in seconds]
        columns: dict[str, list[Any]] = {"audio": rows["audio"], "length": lengths}
        if "text" not in rows:
            return columns
        numbers = rows.get("row") or list(range(len(seconds)))
        labels = self._ctc_labels(rows["text"], processor) if self.ctc else self._token_labels(rows["text"], processor)
        self._check(labels, seconds, numbers, processor)
        if not self.ctc:
            columns["length"] = [length + len(tokens) for length, tokens in zip(lengths, labels, strict=True)]
        return {**columns, "text": rows["text"], "labels": labels, "num_labels": [len(ids) for ids in labels]}

    def _ctc_labels(self, texts: list[str], processor: Any) -> list[list[int]]:
        tokenizer = self._completed(processor).tokenizer
        vocabulary = set(tokenizer.get_vocab())
        return tokenizer([spelled(text, vocabulary) for text in texts]).input_ids

    def _token_labels(self, texts: list[str], processor: Any) -> list[list[int]]:
        """Returns language and task tokens, text and end token; without the start token, which the shift adds."""
        start = self.config.decoder_start_token_id
        ids = processor.tokenizer(texts).input_ids
        return [tokens[1:] if tokens[:1] == [start] else tokens for tokens in ids]

    def _check(self, labels: list[list[int]], seconds: list[float], numbers: list[int], processor: Any) -> None:
        if not self.ctc:
            max_tokens = getattr(self.config, "max_target_positions", None) or math.inf
            overlong = [number for number, tokens in zip(numbers, labels, strict=True) if len(tokens) > max_tokens]
            if overlong:
                raise UserError(_rows_problem(overlong, f"more than the {max_tokens} tokens that the model can write"))
            return
        unknown = processor.tokenizer.unk_token_id
        strange = [number for number, ids in zip(numbers, labels, strict=True) if not set(ids) - {unknown}]
        if strange:
            raise UserError(_rows_problem(strange, "no character is in the model's vocabulary"))
        # One sample less than the header says: resampling may round down.
        samples = [int(duration * processor.feature_extractor.sampling_rate) - 1 for duration in seconds]
        frames = audio.frames_of(self.config, samples)
        short = [number for number, n, ids in zip(numbers, frames, labels, strict=True) if n < needed_frames(ids)]
        if short:
            raise UserError(_rows_problem(short, "more is written than can be said in the recording's time (CTC)"))

    def collate(
        self, rows: list[dict[str, Any]], processor: Any, rngs: Rngs | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        extractor = processor.feature_extractor
        sounds = audio.sounds_of(rows, extractor)
        labels = [row["labels"] for row in rows] if "labels" in rows[0] else None
        if rngs is not None and self.augment is not None and labels is not None:
            sounds = [
                augment_sound(sound, extractor.sampling_rate, self.augment, rng, *self._limits(ids, extractor))
                for sound, ids, rng in zip(sounds, labels, rngs, strict=True)
            ]
        inputs = audio.model_inputs(sounds, extractor, self.config, self.augment, rngs)
        if self.ctc:
            inputs["samples"] = torch.tensor([len(sound) for sound in sounds])
        if labels is None:
            return inputs, None
        if not self.ctc:
            padded = _padded(labels, IGNORED)
            start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
            return {**inputs, "decoder_input_ids": shift_tokens_right(padded, pad, start)}, {"labels": padded}
        frames = audio.frames_of(self.config, inputs["samples"].numpy())
        if any(n < needed_frames(ids) for n, ids in zip(frames, labels, strict=True)):
            raise ValueError("more is written than can be said in the recording's time (CTC)")
        lengths = torch.tensor([len(ids) for ids in labels])
        return inputs, {"labels": _padded(labels, 0), "label_lengths": lengths, "frames": torch.from_numpy(frames)}

    def _limits(self, labels: list[int], extractor: Any) -> tuple[int, int | None]:
        """Fewest and most samples that an augmented recording may have."""
        if self.ctc:
            return (needed_frames(labels) + 1) * math.prod(self.config.conv_stride), None
        return 1, int(audio.window_of(extractor) * extractor.sampling_rate)

    def _completed(self, processor: Any) -> Any:
        """Adds the vocabulary to a processor that was loaded before the transcripts were read."""
        if set(processor.tokenizer.get_vocab()) == set(_SPECIAL):
            processor.tokenizer = ctc_tokenizer(self.labels)
        return processor

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        settings = audio.model_settings(self.config, self.recipe)
        if not self.ctc:
            model = load_pretrained(AutoModelForSpeechSeq2Seq, folder, revision, config, None, settings, **options)
            generation = model.generation_config
            generation.forced_decoder_ids = None  # of old checkpoints: would fight the language
            if getattr(generation, "is_multilingual", False) and self.language:
                generation.language, generation.task = self.language, "transcribe"
            return model
        tokenizer = self._completed(processor).tokenizer
        settings |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        return load_pretrained(AutoModelForCTC, folder, revision, config, None, settings, **options)

    def build_loss(self, train: Examples) -> CtcLoss | TokenLoss:
        return CtcLoss(self.config.pad_token_id) if self.ctc else TokenLoss()

    def weights(self, loss: CtcLoss | TokenLoss, examples: Examples) -> np.ndarray:
        return examples.numbers("num_labels").astype(np.float64)

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
        if not self.ctc and "decoder_input_ids" not in inputs:
            return None  # `predict` writes the text; there is none to compare it with
        cache = {} if self.ctc else {"use_cache": False}  # nothing is generated here
        return model(**{name: value for name, value in inputs.items() if name != "samples"}, **cache).logits.float()

    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Any, processor: Any) -> list[str]:
        """Returns texts."""
        if self.ctc:
            frames = audio.frames_of(self.config, inputs["samples"].cpu().numpy())
            best = outputs.argmax(dim=-1).cpu()
            best[best == processor.tokenizer.unk_token_id] = processor.tokenizer.pad_token_id  # nothing to write
            return [processor.tokenizer.decode(ids[:n].tolist()) for ids, n in zip(best, frames, strict=True)]
        features = inputs[processor.feature_extractor.model_input_names[0]]
        generated = model.generate(  # type: ignore[operator]
            features,
            attention_mask=torch.ones(features.shape[0], features.shape[-1], dtype=torch.long, device=features.device),
            num_beams=self.num_beams,
            do_sample=False,
            max_length=self.config.max_target_positions // 2,  # what Whisper's own program allows
            synced_gpus=torch.distributed.is_available() and torch.distributed.is_initialized(),
        )
        return [text.strip() for text in processor.tokenizer.batch_decode(generated, skip_special_tokens=True)]

    # ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def references(self, examples: Examples) -> list[Any]:
        return list(examples.column("text"))

    def score(self, predictions: list[str], examples: Examples, processor: Any) -> dict[str, Any]:
        return transcript_scores(predictions, self.references(examples))

    def describe(self, predictions: list[str], processor: Any) -> list[dict[str, Any]]:
        return [{"text": text} for text in predictions]


# ── vocabulary ──────────────────────────────────────────────────────────────────────────────────────────────────────
_SPECIAL = ("[PAD]", "[UNK]", "|")  # the blank, unknown characters, the end of a word


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


def _is_multilingual(source: str, config: PretrainedConfig, **options: Any) -> bool:
    try:
        generation = GenerationConfig.from_pretrained(source, revision=options.get("revision"))
    except OSError:
        generation = None
    return bool(getattr(generation, "is_multilingual", config.vocab_size > _ENGLISH_VOCABULARY))


def _padded(labels: list[list[int]], value: int) -> Tensor:
    longest = max(len(ids) for ids in labels)
    return torch.tensor([ids + [value] * (longest - len(ids)) for ids in labels])


def _rows_problem(numbers: list[int], message: str) -> Problem:
    listing = ", ".join(map(str, numbers[:_MOST_NAMED])) + (" and more" if len(numbers) > _MOST_NAMED else "")
    return Problem(f"row{'s' * (len(numbers) > 1)} {listing}: {message}", "data.columns.text")
