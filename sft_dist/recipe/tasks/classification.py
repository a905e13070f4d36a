"""Settings and metrics that text, image and audio classification share."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from sft_dist.recipe.tasks.base import Kind, Metrics, Probability, TaskSettings

# Macro averages are over the classes that occur in the split or in the predictions.
ONE_CLASS_METRICS: Metrics = {
    "accuracy": "max",
    "f1_macro": "max",
    "f1_weighted": "max",
    "precision_macro": "max",
    "precision_weighted": "max",
    "recall_macro": "max",
    "recall_weighted": "max",
    "roc_auc": "max",
    "mcc": "max",
    "loss": "min",
}
CLASS_LOSSES = ("cross-entropy", "focal")
SINGLE_LABEL = Kind(ONE_CLASS_METRICS, CLASS_LOSSES, "one", "single-label")
MULTI_LABEL = Kind(
    metrics={
        "f1_macro": "max",
        "f1_micro": "max",
        "f1_weighted": "max",
        "precision_macro": "max",
        "precision_micro": "max",
        "recall_macro": "max",
        "recall_micro": "max",
        "roc_auc": "max",
        "exact_match": "max",
        "loss": "min",
    },
    losses=("binary-cross-entropy", "focal"),
    classes="many",
    problem="multi-label",
)


class ClassificationSettings(TaskSettings):
    """A task whose `problem` chooses among its kinds."""

    problem: str
    threshold: Probability | None = Field(
        None, description="multi-label only: lowest probability of a predicted class [default: 0.5]."
    )
    label_separator: Annotated[str, Field(min_length=1, max_length=8)] | None = Field(
        None, description="multi-label only: separates class names in a text column, such as '|' [default: ',']."
    )

    samples: ClassVar[Mapping[str, str]] = {"threshold": "0.5", "label_separator": "'|'"}

    @property
    def kind(self) -> Kind:
        return next(kind for kind in self.kinds if kind.problem == self.problem)

    @model_validator(mode="after")
    def _only_for_multi_label(self) -> Self:
        if self.problem != "multi-label":
            for key in ("threshold", "label_separator"):
                if getattr(self, key) is not None:
                    raise ValueError(f"`{key}` has no effect with problem: {self.problem}; it belongs to multi-label")
        return self
