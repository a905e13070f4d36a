"""Facts of text classification."""

from typing import ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.tasks.base import Columns, Kind, Starters
from sft_dist.recipe.tasks.classification import MULTI_LABEL, SINGLE_LABEL, ClassificationSettings

REGRESSION = Kind(
    metrics={
        "mse": "min",
        "rmse": "min",
        "mae": "min",
        "r2": "max",
        "pearson": "max",
        "spearman": "max",
        "loss": "min",
    },
    losses=("mse", "huber"),
    problem="regression",
)


class TextClassificationTask(ClassificationSettings):
    type: Literal["text-classification"] = Field(description="One class, several, or a number for a text or a pair.")
    problem: Literal["single-label", "multi-label", "regression"] = Field(
        "single-label",
        description="single-label: one class per text. multi-label: any number of classes (a list, or names joined by "
        "`label_separator`). regression: one number.",
    )

    work = "sft_dist.tasks.text_classification:TextClassification"
    columns: ClassVar[Columns] = {"text": "required", "text_pair": "if mapped", "label": "required"}
    kinds = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
    augmentation = "text"
    starters: ClassVar[Starters] = {
        "text-classification": {
            "task.problem": "single-label",
            "model.path": "sentence-transformers/all-MiniLM-L6-v2",
            "data.source": "./train.csv",
            "data.columns": "{text: text, label: label}",
            "data.max_length": "128",
            "tuning.method": "lora",
            "tuning.r": "16",
            "tuning.alpha": "32",
            "train.lr": "5e-4",
            "evaluate.metric": "accuracy",
        }
    }
