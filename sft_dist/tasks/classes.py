"""What text, image and audio classification have in common: labels, losses, scores, and how a prediction is shown."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Features
from torch import Tensor
from transformers import PreTrainedModel

from sft_dist.losses.classification import ClassLoss, build_loss
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks.classification import ClassificationSettings
from sft_dist.tasks.base import BaseTask
from sft_dist.tasks.label_types import LABEL_TYPES, LabelOptions, LabelType

if TYPE_CHECKING:
    from sft_dist.data.rows import Examples, Rows

NO_LABEL = "no label"


class ClassTask(BaseTask):
    """One class, any number of classes, or one number for an example, as the recipe's kind of problem says."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.label_type: LabelType = LABEL_TYPES[recipe.task.kind.classes](label_options(recipe))

    # ── labels ──────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def label_feature(self) -> Any:
        """Type of labels in stored rows: class names, lists of them, numbers."""
        return self.label_type.feature

    @property
    def target_features(self) -> Features:
        """Type of labels in encoded examples."""
        return Features({"label": self.label_type.target_feature})

    def parse(self, raw: Any, row: int) -> Any | None:
        """Converts a label of the source to its stored form; None when there is none. Raises UserError naming the row."""
        return self.label_type.parse(raw, row, self.labels)

    def strata(self, train: Rows) -> list[Hashable] | None:
        return self.label_type.strata(train)

    def learn_labels(self, train: Rows) -> None:
        if self.labels:
            return
        self.labels, minimum = self.label_type.learn(train), self.label_type.min_classes
        if len(self.labels) < minimum:
            message = "at least two classes are needed" if minimum > 1 else "at least one class is needed"
            raise UserError(Problem(message, path="data.columns.label", value=str(self.labels)))

    def numbers_of(self, stored: list[Any]) -> list[Any]:
        """Converts stored labels to class numbers, lists of them, or numbers. Raises UserError for an unknown class."""
        return self.label_type.numbers_of(stored, self.labels)

    def targets_of(self, numbers: list[Any]) -> Tensor:
        """Returns encoded labels as (examples,), or for multi-label as (examples, classes) of zeros and ones."""
        return self.label_type.targets_of(numbers, self.labels)

    @property
    def model_labels(self) -> list[str]:
        return self.labels or ["value"]

    @property
    def model_settings(self) -> dict[str, Any]:
        return {"problem_type": self.label_type.problem_type}

    def with_threshold(self, model: PreTrainedModel) -> PreTrainedModel:
        """Stores in the config, which is saved with the model, from which probability on a class counts as predicted."""
        if (threshold := self.label_type.threshold) is not None:
            model.config.threshold = threshold
        return model

    # ── loss and scores ─────────────────────────────────────────────────────────────────────────────────────────────
    def build_loss(self, train: Examples) -> ClassLoss:
        losses, targets = self.label_type.losses, lambda: self._all_targets(train)
        return build_loss(self.recipe.train.loss, losses, self.labels, targets)

    def weights(self, loss: ClassLoss, examples: Examples) -> np.ndarray:
        return loss.weights(self._all_targets(examples))

    def _all_targets(self, examples: Examples) -> np.ndarray:
        return self.label_type.targets_in(examples, self.labels)

    def references(self, examples: Examples) -> list[Any]:
        return list(self._all_targets(examples))

    def score(self, predictions: list[Any], examples: Examples, processor: Any) -> dict[str, Any]:
        return self.label_type.scores(np.stack(predictions), self._all_targets(examples))

    def describe(self, predictions: list[Any], processor: Any) -> list[dict[str, Any]]:
        return self.label_type.describe(np.stack(predictions), self.labels)


def label_options(recipe: Recipe) -> LabelOptions:
    options = LabelOptions(recipe.data.labels, dict(recipe.data.clean.map_labels))
    task = recipe.task
    if not isinstance(task, ClassificationSettings):
        return options
    return LabelOptions(
        options.valid, options.renamed, task.threshold or options.threshold, task.label_separator or options.separator
    )
