"""Speech recognition: the text of a recording, by CTC or from a decoder. The model's config decides between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from datasets import Features, Value
from torch import Tensor, nn
from transformers import PreTrainedModel

from sft_dist.data.augment.audio import augment_sound
from sft_dist.metrics.audio import transcript_scores
from sft_dist.metrics.transcripts import comparable
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import audio
from sft_dist.tasks.base import BaseTask, Loss, Rngs
from sft_dist.tasks.speech_ctc import Ctc
from sft_dist.tasks.speech_seq2seq import Seq2Seq

if TYPE_CHECKING:
    from sft_dist.data.rows import Examples, Rows

_MOST_NAMED = 16


class Recognizer(Protocol):
    """How a model writes: what differs between CTC and a decoder."""

    def load_processor(self, source: str, **options: Any) -> Any:
        """Returns a processor with `feature_extractor` and `tokenizer`. Raises UserError when the recipe asks for what the
        model cannot do."""

    def tokenize(self, texts: list[str], processor: Any) -> list[list[int]]:
        """Returns the symbols or tokens of each transcript."""

    def lengths(self, num_frames: list[int], labels: list[list[int]]) -> list[int]:
        """Returns the work that each example is."""

    def faults(self, labels: list[list[int]], seconds: list[float], processor: Any) -> Iterator[tuple[str, list[int]]]:
        """Yields what can be wrong with a transcript, and the indices of those that have it."""

    def sample_limits(self, labels: list[int], extractor: Any) -> tuple[int, int | None]:
        """Returns the fewest and most samples that an augmented recording may have."""

    def batch(
        self, inputs: dict[str, Tensor], sounds: list[np.ndarray], labels: list[list[int]] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Returns the inputs with what the model also needs, and padded targets."""

    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel: ...

    def build_loss(self) -> Loss: ...

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
        """Returns logits; None where the model has to write first."""

    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Any, processor: Any) -> list[str]:
        """Returns texts."""


class SpeechRecognition(audio.KnowsConfig, BaseTask):
    """`labels` are the characters of the transcripts: the vocabulary of a CTC model that comes without one."""

    pipeline_tag = "automatic-speech-recognition"
    input_roles = ("audio",)
    text_roles = ("text",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        task: Any = recipe.task
        self.max_seconds: float = task.max_seconds
        self.augment = recipe.data.augment.audio
        text = Value("large_string")
        self.row_features = Features({"audio": audio.AUDIO, "seconds": Value("float64"), "text": text})
        self.encoded_features = Features({"audio": audio.AUDIO})

    @property
    def recognizer(self) -> Recognizer:
        if self.config.is_encoder_decoder:
            return Seq2Seq(self.recipe, self.config)
        return Ctc(self.recipe, self.config, self.labels)

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
        self._config = audio.config_of(source, self.recipe, **options)
        return self.recognizer.load_processor(source, **options)

    def encode(self, rows: dict[str, list[Any]], processor: Any) -> dict[str, list[Any]]:
        """Raises UserError naming the rows whose text does not fit what the model can write for them."""
        seconds = rows.get("seconds") or [audio.seconds_of(value) for value in rows["audio"]]
        num_frames = [max(1, round(duration * audio.FRAMES_PER_SECOND)) for duration in seconds]
        columns: dict[str, list[Any]] = {"audio": rows["audio"], "length": num_frames}
        if "text" not in rows:
            return columns
        recognizer = self.recognizer
        labels = recognizer.tokenize(rows["text"], processor)
        row_numbers = rows.get("row") or list(range(len(seconds)))
        for message, indices in recognizer.faults(labels, seconds, processor):
            if indices:
                raise UserError(_rows_problem([row_numbers[index] for index in indices], message))
        columns["length"] = recognizer.lengths(num_frames, labels)
        return {**columns, "text": rows["text"], "labels": labels, "num_labels": [len(ids) for ids in labels]}

    def collate(
        self, rows: list[dict[str, Any]], processor: Any, rngs: Rngs | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        extractor, recognizer = processor.feature_extractor, self.recognizer
        sounds = audio.sounds_of(rows, extractor)
        labels = [row["labels"] for row in rows] if "labels" in rows[0] else None
        if rngs is not None and self.augment is not None and labels is not None:
            limits = [recognizer.sample_limits(ids, extractor) for ids in labels]
            sounds = [
                augment_sound(sound, extractor.sampling_rate, self.augment, rng, *fewest_and_most)
                for sound, fewest_and_most, rng in zip(sounds, limits, rngs, strict=True)
            ]
        inputs = audio.model_inputs(sounds, extractor, self.config, self.augment, rngs)
        return recognizer.batch(inputs, sounds, labels)

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        return self.recognizer.build_model(folder, revision, config, processor, **options)

    def build_loss(self, train: Examples) -> Loss:
        return self.recognizer.build_loss()

    def weights(self, loss: Loss, examples: Examples) -> np.ndarray:
        return examples.numbers("num_labels").astype(np.float64)

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
        return self.recognizer.forward(model, inputs)

    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Any, processor: Any) -> list[str]:
        """Returns texts."""
        return self.recognizer.predict(model, inputs, outputs, processor)

    # ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def references(self, examples: Examples) -> list[Any]:
        return list(examples.column("text"))

    def score(self, predictions: list[str], examples: Examples, processor: Any) -> dict[str, Any]:
        return transcript_scores(predictions, self.references(examples))

    def describe(self, predictions: list[str], processor: Any) -> list[dict[str, Any]]:
        return [{"text": text} for text in predictions]


def _rows_problem(numbers: list[int], message: str) -> Problem:
    listing = ", ".join(map(str, numbers[:_MOST_NAMED])) + (" and more" if len(numbers) > _MOST_NAMED else "")
    return Problem(f"row{'s' * (len(numbers) > 1)} {listing}: {message}", "data.columns.text")
