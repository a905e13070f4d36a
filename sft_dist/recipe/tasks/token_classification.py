"""Facts of token classification."""

from typing import ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.tasks.base import Columns, Kind, Starters, TaskSettings


class TokenClassificationTask(TaskSettings):
    type: Literal["token-classification"] = Field(description="A tag for every word, as in named entity recognition.")
    label_all_pieces: bool = Field(
        False, description="Train on every token of a word [default: the first only, which is the one scored]."
    )

    work = "sft_dist.tasks.token_classification:TokenClassification"
    columns: ClassVar[Columns] = {"tokens": "required", "tags": "required"}
    kinds = (
        Kind(
            metrics={"f1": "max", "precision": "max", "recall": "max", "accuracy": "max", "loss": "min"},
            losses=("cross-entropy", "focal"),
            classes="many",
        ),
    )
    packages = (("seqeval", "sft-dist[text]"),)
    starters: ClassVar[Starters] = {
        "token-classification": {
            "model.path": "distilbert/distilbert-base-cased",
            "data.source": "./train.conll",
            "data.max_length": "128",
            "evaluate.metric": "f1",
        }
    }
