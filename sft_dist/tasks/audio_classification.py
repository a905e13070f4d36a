"""Audio classification: one class for a recording, such as a keyword or an emotion (models like wav2vec2, AST,
Whisper's encoder)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Features, Value
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, PreTrainedModel, WhisperFeatureExtractor

from sft_dist.data.augment.audio import augment_sound
from sft_dist.metrics.audio import unweighted_average_recall
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks.audio_classification import AudioClassificationTask
from sft_dist.tasks import audio
from sft_dist.tasks.base import Rngs
from sft_dist.tasks.classes import NO_LABEL, ClassTask
from sft_dist.tasks.loading import load_pretrained


class AudioClassification(audio.KnowsConfig, ClassTask):
    pipeline_tag = "audio-classification"
    input_roles = ("audio",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.task, AudioClassificationTask)
        self.max_seconds = recipe.task.max_seconds
        self.augment = recipe.data.augment.audio
        self.row_features = Features({"audio": audio.AUDIO, "seconds": Value("float64"), "label": self.label_feature})
        self.encoded_features = Features({"audio": audio.AUDIO})

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        label = self.parse(row["label"], number)
        if label is None:
            return NO_LABEL
        if row["audio"] is None:
            return audio.NO_AUDIO
        return {"audio": row["audio"], "seconds": audio.seconds_in_row(row, number), "label": label}

    def identity(self, row: dict[str, Any]) -> bytes:
        return audio.content_of(row["audio"])

    # ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────
    def load_processor(self, source: str, **options: Any) -> Any:
        """Loads the feature extractor; limits the window of Whisper's to `max_seconds`, which saves the rest of its 30 s."""
        self._config = audio.config_of(source, self.recipe, **options)
        extractor = AutoFeatureExtractor.from_pretrained(source, **options)
        if isinstance(extractor, WhisperFeatureExtractor) and math.ceil(self.max_seconds) < extractor.chunk_length:
            window = {"chunk_length": math.ceil(self.max_seconds)}
            extractor = WhisperFeatureExtractor.from_pretrained(source, **options, **window)
        return extractor

    def encode(self, rows: dict[str, list[Any]], processor: Any) -> dict[str, list[Any]]:
        seconds = rows.get("seconds") or [audio.seconds_of(value) for value in rows["audio"]]
        longest = self._longest(processor)
        columns: dict[str, list[Any]] = {
            "audio": rows["audio"],
            "length": [max(1, round(min(duration, longest) * audio.FRAMES_PER_SECOND)) for duration in seconds],
            "truncated": [duration > longest for duration in seconds],
        }
        return {**columns, "label": self.numbers_of(rows["label"])} if "label" in rows else columns

    def collate(
        self, rows: list[dict[str, Any]], processor: Any, rngs: Rngs | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        sounds = audio.sounds_of(rows, processor)
        if rngs is not None and self.augment is not None:
            rate = processor.sampling_rate
            sounds = [augment_sound(sound, rate, self.augment, rng) for sound, rng in zip(sounds, rngs, strict=True)]
        max_samples = self._longest(processor) * processor.sampling_rate
        generators: Sequence[np.random.Generator | None] = rngs or [None] * len(sounds)
        sounds = [
            cut(sound, int(min(max_samples, len(sound))), rng) for sound, rng in zip(sounds, generators, strict=True)
        ]
        inputs = audio.model_inputs(sounds, processor, self.config, self.augment, rngs)
        return inputs, self.targets_of([row["label"] for row in rows]) if "label" in rows[0] else None

    def _longest(self, processor: Any) -> float:
        return min(self.max_seconds, audio.window_of(processor))

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        settings = {**self.model_settings, **audio.model_settings(self.config, self.recipe)}
        auto = AutoModelForAudioClassification
        model = load_pretrained(auto, folder, revision, config, self.model_labels, settings, **options)
        return audio.shorten_window(model, processor)

    # ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def score(self, predictions: list[Any], examples: Any, processor: Any) -> dict[str, Any]:
        predicted, targets = np.stack(predictions).argmax(axis=1), examples.numbers("label")
        scores = super().score(predictions, examples, processor)
        return {**scores, "uar": unweighted_average_recall(predicted, targets)}


def cut(sound: np.ndarray, samples: int, rng: np.random.Generator | None) -> np.ndarray:
    """Cuts a number of samples from a recording: at a random position in training, from the middle otherwise."""
    spare = len(sound) - samples
    start = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return sound[start : start + samples]
