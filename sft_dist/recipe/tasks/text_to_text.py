"""Facts of translation and summarization, which share their options."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.errors import Problem
from sft_dist.recipe.tasks.base import Columns, Kind, Positive, Starters, TaskSettings

TRANSLATION = Kind(
    metrics={"bleu": "max", "chrf": "max", "loss": "min"},
    losses=("cross-entropy",),
    packages=(("sacrebleu", "sft-dist[text]"),),
)
SUMMARIZATION = Kind(
    metrics={"rougeL": "max", "rouge1": "max", "rouge2": "max", "loss": "min"},
    losses=("cross-entropy",),
    packages=(("rouge_score", "sft-dist[text]"),),
)


class TextToTextTask(TaskSettings):
    type: Literal["translation", "summarization"] = Field(
        description="One text from another, as in translation (encoder-decoder models)."
    )
    prefix: str = Field("", description="Text before every source, as T5 expects: `translate English to German: `.")
    source_language: str | None = Field(None, description="Code of the source's language, for multilingual models.")
    target_language: str | None = Field(None, description="Code of the target's language, for multilingual models.")
    max_target_length: Positive = Field(128, description="Longest target in tokens; longer ones are truncated.")
    num_beams: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Number of beams.")

    work = "sft_dist.tasks.text_to_text:TextToText"
    writes_text = True
    columns: ClassVar[Columns] = {"source": "required", "target": "required"}
    kinds = (TRANSLATION, SUMMARIZATION)
    starters: ClassVar[Starters] = {
        "translation": {
            "task.prefix": "'translate English to German: '",
            "model.path": "google-t5/t5-small",
            "data.source": "./train.jsonl",
            "data.columns": "{source: en, target: de}",
            "data.max_length": "128",
            "evaluate.metric": "bleu",
        },
        "summarization": {
            "task.prefix": "'summarize: '",
            "model.path": "google-t5/t5-small",
            "data.source": "./train.jsonl",
            "data.columns": "{source: article, target: summary}",
            "data.max_length": "512",
            "evaluate.metric": "rougeL",
        },
    }
    samples: ClassVar[Mapping[str, str]] = {"source_language": "en", "target_language": "de"}

    @property
    def kind(self) -> Kind:
        return TRANSLATION if self.type == "translation" else SUMMARIZATION

    def conflicts(self) -> Iterator[Problem]:
        if (self.source_language is None) != (self.target_language is None):
            missing = "source_language" if self.source_language is None else "target_language"
            yield Problem("give both languages, or neither", f"task.{missing}", value="nothing")
