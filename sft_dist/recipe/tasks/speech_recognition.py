"""Facts of speech recognition."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.tasks.base import Columns, Kind, Media, Seconds, Starters, TaskSettings


class SpeechRecognitionTask(TaskSettings):
    type: Literal["speech-recognition"] = Field(description="The transcript of a recording (CTC and Whisper models).")
    language: str | None = Field(None, description="Language token, for multilingual Whisper models: `en`.")
    max_seconds: Seconds = Field(30.0, description="Drop longer recordings.")
    num_beams: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Number of beams (Whisper).")

    work = "sft_dist.tasks.speech_recognition:SpeechRecognition"
    writes_text = True
    columns: ClassVar[Columns] = {"audio": "required", "text": "required"}
    kinds = (Kind({"wer": "min", "cer": "min", "loss": "min"}, ("model",)),)
    media: ClassVar[Media] = {"audio": "audio"}
    augmentation = "audio"
    packages = (("soundfile", "sft-dist[audio]"), ("soxr", "sft-dist[audio]"), ("jiwer", "sft-dist[audio]"))
    starters: ClassVar[Starters] = {
        "speech-recognition": {
            "model.path": "openai/whisper-tiny",
            "data.source": "./recordings",
            "evaluate.metric": "wer",
        }
    }
    samples: ClassVar[Mapping[str, str]] = {"language": "en"}

    @property
    def max_audio_s(self) -> float:
        return self.max_seconds
