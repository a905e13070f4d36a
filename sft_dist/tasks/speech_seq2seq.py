"""Speech recognition by an encoder and a decoder, which writes the transcript token by token (Whisper, arXiv 2212.04356)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.whisper.modeling_whisper import shift_tokens_right
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from sft_dist.losses.speech import TranscriptLoss
from sft_dist.losses.targets import IGNORED
from sft_dist.losses.tokens import padded
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import audio
from sft_dist.tasks.loading import greedy_or_beams, load_pretrained, set_generation

_ENGLISH_VOCABULARY = 51864  # of Whisper's .en models; the others have more


@dataclass(frozen=True)
class Seq2Seq:
    """A model whose decoder writes the transcript."""

    recipe: Recipe
    config: Any  # of the model

    @property
    def settings(self) -> Any:
        return self.recipe.task

    def load_processor(self, source: str, **options: Any) -> Any:
        processor = AutoProcessor.from_pretrained(source, **options)
        window = audio.window_of(processor.feature_extractor)
        if self.settings.max_seconds > window:
            message = f"the model takes at most {window:g} seconds"
            raise UserError(Problem(message, "task.max_seconds", value=f"{self.settings.max_seconds:g}"))
        if self.config.model_type == "whisper":
            prefix = self._prefix(_is_multilingual(source, self.config, **options))
            processor.tokenizer.set_prefix_tokens(**prefix, predict_timestamps=False)
        return processor

    def _prefix(self, multilingual: bool) -> dict[str, str | None]:
        """Returns what the transcript's first tokens say. Raises UserError when the model does not know the language."""
        language = self.settings.language
        if not multilingual:
            if language not in (None, "en", "english"):
                raise UserError(Problem("this model is for English only", "task.language", value=language))
            return {"language": None, "task": None}
        code = TO_LANGUAGE_CODE.get((language or "").lower(), language)
        if code not in LANGUAGES:
            message = (
                "name the language that is spoken: the model is multilingual"
                if code is None
                else "no language of the model"
            )
            raise UserError(Problem(message, "task.language", value=language, valid=tuple(sorted(LANGUAGES))))
        return {"language": code, "task": "transcribe"}

    # ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────
    def tokenize(self, texts: list[str], processor: Any) -> list[list[int]]:
        """Returns language and task tokens, text and end token; without the start token, which the shift adds."""
        start = self.config.decoder_start_token_id
        ids = processor.tokenizer(texts).input_ids
        return [tokens[1:] if tokens[:1] == [start] else tokens for tokens in ids]

    def lengths(self, num_frames: list[int], labels: list[list[int]]) -> list[int]:
        return [frames + len(tokens) for frames, tokens in zip(num_frames, labels, strict=True)]

    def faults(self, labels: list[list[int]], seconds: list[float], processor: Any) -> Iterator[tuple[str, list[int]]]:
        max_tokens = getattr(self.config, "max_target_positions", None) or math.inf
        overlong = [index for index, tokens in enumerate(labels) if len(tokens) > max_tokens]
        yield f"more than the {max_tokens} tokens that the model can write", overlong

    def sample_limits(self, labels: list[int], extractor: Any) -> tuple[int, int | None]:
        return 1, int(audio.window_of(extractor) * extractor.sampling_rate)

    def batch(
        self, inputs: dict[str, Tensor], sounds: list[np.ndarray], labels: list[list[int]] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        if labels is None:
            return inputs, None
        tokens = padded(labels, IGNORED)
        shifted = shift_tokens_right(tokens, self.config.pad_token_id, self.config.decoder_start_token_id)
        return {**inputs, "decoder_input_ids": shifted}, {"labels": tokens}

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        settings = audio.model_settings(self.config, self.recipe)
        model = load_pretrained(AutoModelForSpeechSeq2Seq, folder, revision, config, None, settings, **options)
        generation = model.generation_config
        set_generation(model, self._generation())
        generation.forced_decoder_ids = None  # of old checkpoints: would fight the language
        if getattr(generation, "is_multilingual", False) and self.settings.language:
            generation.language, generation.task = self.settings.language, "transcribe"
        return model

    def _generation(self) -> dict[str, Any]:
        """How transcripts are written; they are as long as Whisper's own program allows."""
        return {**greedy_or_beams(self.settings.num_beams), "max_length": self.config.max_target_positions // 2}

    def build_loss(self) -> TranscriptLoss:
        return TranscriptLoss()

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
        if "decoder_input_ids" not in inputs:
            return None  # `predict` writes the text; there is none to compare it with
        return model(**inputs, use_cache=False).logits.float()  # nothing is generated here

    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Any, processor: Any) -> list[str]:
        features = inputs[processor.feature_extractor.model_input_names[0]]
        generated = model.generate(  # type: ignore[operator]
            features,
            attention_mask=torch.ones(features.shape[0], features.shape[-1], dtype=torch.long, device=features.device),
            synced_gpus=torch.distributed.is_available() and torch.distributed.is_initialized(),
            **self._generation(),
        )
        return [text.strip() for text in processor.tokenizer.batch_decode(generated, skip_special_tokens=True)]


def _is_multilingual(source: str, config: PretrainedConfig, **options: Any) -> bool:
    try:
        generation = GenerationConfig.from_pretrained(source, revision=options.get("revision"))
    except OSError:
        generation = None
    return bool(getattr(generation, "is_multilingual", config.vocab_size > _ENGLISH_VOCABULARY))
