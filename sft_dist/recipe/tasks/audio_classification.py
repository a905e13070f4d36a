"""Facts of audio classification."""

from typing import ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.tasks.base import Columns, Kind, Media, Seconds, Starters, TaskSettings
from sft_dist.recipe.tasks.classification import CLASS_LOSSES, ONE_CLASS_METRICS


class AudioClassificationTask(TaskSettings):
    type: Literal["audio-classification"] = Field(description="One class for a recording: a keyword, an emotion.")
    max_seconds: Seconds = Field(10.0, description="Longest recording; longer ones are truncated.")

    work = "sft_dist.tasks.audio_classification:AudioClassification"
    columns: ClassVar[Columns] = {"audio": "required", "label": "required"}
    kinds = (Kind({**ONE_CLASS_METRICS, "uar": "max"}, CLASS_LOSSES, "one"),)
    media: ClassVar[Media] = {"audio": "audio"}
    augmentation = "audio"
    packages = (("soundfile", "sft-dist[audio]"), ("soxr", "sft-dist[audio]"))
    starters: ClassVar[Starters] = {
        "audio-classification": {
            "model.path": "facebook/wav2vec2-base",
            "data.source": "./recordings",
            "evaluate.metric": "accuracy",
        }
    }

    @property
    def max_audio_s(self) -> float:
        return self.max_seconds
