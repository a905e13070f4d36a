"""What text, image and audio classification have in common: labels, losses, scores, and how a prediction is shown."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Hashable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Features, List, Value
from torch import Tensor
from transformers import PreTrainedModel

from sft_dist.data.clean import type_name
from sft_dist.data.text_lists import is_broken_list, parse_list
from sft_dist.losses.classification import ClassLoss, build_loss
from sft_dist.metrics import classification as metrics
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import BaseTask

if TYPE_CHECKING:
    from sft_dist.data.rows import Examples, Rows

_WHOLE_NUMBER = re.compile(r"-?[0-9]+")
PROBLEM_TYPES = {
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
NO_LABEL = "no label"


class ClassTask(BaseTask):
    """One class, any number of classes, or one number for an example."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        task = recipe.task
        self.problem: str = getattr(task, "problem", "single-label")
        self.threshold: float = getattr(task, "threshold", None) or 0.5
        self.separator: str = getattr(task, "label_separator", None) or ","
        self.renamed = dict(recipe.data.clean.map_labels)
        self.given_labels = recipe.data.labels

    # ── labels ──────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def label_feature(self) -> Any:
        """Type of labels in stored rows: class names, lists of them, numbers."""
        text = Value("string")
        return {"single-label": text, "multi-label": List(text), "regression": Value("float64")}[self.problem]

    @property
    def target_features(self) -> Features:
        """Type of labels in encoded examples."""
        number = {"single-label": Value("int64"), "multi-label": List(Value("int64")), "regression": Value("float32")}
        return Features({"label": number[self.problem]})

    def parse(self, raw: Any, row: int) -> Any | None:
        """Converts a label of the source to its stored form; None when there is none. Raises UserError naming the row."""
        if raw is None or (isinstance(raw, float) and math.isnan(raw)):
            return None
        if self.problem == "regression":
            return _number(raw, row)
        if self.problem == "multi-label":
            return self._classes(raw, row)
        if isinstance(raw, str) and parse_list(raw) is not None and raw.strip() not in self.labels:
            raise _not_a_class(raw, "a list", row, "label")
        name = class_name(raw, row)
        return self._valid_class(name, row) if name else None

    def _classes(self, raw: Any, row: int) -> list[str]:
        """Class names of a list, a text of such a list, names between separators, or a vector of 0 and 1. A class that
        occurs twice counts once."""
        values = _items(raw, self.separator, row)
        if self._is_vector(values, row):
            assert self.given_labels is not None
            names = [name for name, value in zip(self.given_labels, values, strict=True) if float(value)]
        else:
            names = [class_name(value, row) for value in values if value is not None]
        return list(dict.fromkeys(self._valid_class(name, row) for name in names if name))

    def _is_vector(self, values: list[Any], row: int) -> bool:
        """Checks whether values are 0 or 1 for each of data.labels. Raises UserError where they could also be class names."""
        values = [int(value) if isinstance(value, bool) else value for value in values]
        names = [class_name(value, row) for value in values if value is not None]
        is_written = all(isinstance(value, str) for value in values)
        is_binary = len(values) > 1 and len(names) == len(values) and set(names) <= {"0", "1"}
        if not is_binary or (is_written and not self.given_labels and len(set(names)) == len(names)):
            return False
        given = self.given_labels or []
        are_names = set(names) <= set(given)
        if len(given) == len(values) and not {"0", "1"} & set(given):
            return True
        if are_names and (is_written or len(given) != len(values)) and len(set(names)) == len(names):
            return False
        message = (
            f"row {row}: {len(values)} values of 0 and 1 can be read as class names or as one value for each class"
        )
        hint = "list the class of each value, in order, in data.labels; or write class names as text"
        count = f"{values} and {len(given)} classes in data.labels"
        raise UserError(Problem(message, "data.columns.label", value=count, hint=hint))

    def _valid_class(self, name: str, row: int) -> str:
        name = self.renamed.get(name, name)
        if self.given_labels and name not in self.given_labels:
            matches = difflib.get_close_matches(name, self.given_labels, 1)
            hint = f"did you mean `{matches[0]}`?" if matches else ""
            valid = tuple(self.given_labels[:20])
            raise UserError(
                Problem(f"row {row}: not one of data.labels", "data.labels", value=name, valid=valid, hint=hint)
            )
        return name

    def strata(self, train: Rows) -> list[Hashable] | None:
        if self.problem != "single-label":
            return None
        codes, names = train.codes("label")
        return [names[code] for code in codes]

    def learn_labels(self, train: Rows) -> None:
        if self.problem == "regression" or self.labels:
            return
        if self.problem == "single-label":
            self.labels = sorted_labels(train.codes("label")[1])
        else:
            self.labels = sorted_labels(name for target in train.column("label") for name in target)
        minimum, description = (2, "two classes are") if self.problem == "single-label" else (1, "one class is")
        if len(self.labels) < minimum:
            raise UserError(
                Problem(f"at least {description} needed", path="data.columns.label", value=str(self.labels))
            )

    def numbers_of(self, targets: list[Any]) -> list[Any]:
        """Converts stored labels to class numbers, lists of them, or numbers. Raises UserError for an unknown class."""
        if self.problem == "regression":
            return targets
        number = {label: i for i, label in enumerate(self.labels)}
        groups = [[target] for target in targets] if self.problem == "single-label" else targets
        if unknown := sorted({name for names in groups for name in names} - set(number)):
            raise UserError(unknown_classes(unknown, self.labels))
        if self.problem == "single-label":
            return [number[target] for target in targets]
        return [sorted({number[name] for name in names}) for names in targets]

    def targets_of(self, numbers: list[Any]) -> Tensor:
        """Returns encoded labels as (examples,), or for multi-label as (examples, classes) of zeros and ones."""
        if self.problem == "multi-label":
            hot = torch.zeros(len(numbers), len(self.labels))
            for row, classes in enumerate(numbers):
                hot[row, classes] = 1
            return hot
        return torch.tensor(numbers, dtype=torch.float32 if self.problem == "regression" else torch.int64)

    @property
    def model_labels(self) -> list[str]:
        return self.labels or ["value"]

    @property
    def model_settings(self) -> dict[str, Any]:
        return {"problem_type": PROBLEM_TYPES[self.problem]}

    def with_threshold(self, model: PreTrainedModel) -> PreTrainedModel:
        """Stores in the config, which is saved with the model, from which probability on a class counts as predicted."""
        if self.problem == "multi-label":
            model.config.threshold = self.threshold
        return model

    # ── loss and scores ─────────────────────────────────────────────────────────────────────────────────────────────
    def build_loss(self, train: Examples) -> ClassLoss:
        return build_loss(self.recipe.train.loss, self.problem, self.labels, lambda: self._all_targets(train))

    def weights(self, loss: ClassLoss, examples: Examples) -> np.ndarray:
        return loss.weights(self._all_targets(examples))

    def _all_targets(self, examples: Examples) -> np.ndarray:
        if self.problem == "multi-label":
            return self.targets_of(examples.column("label")).numpy()
        return examples.numbers("label")

    def references(self, examples: Examples) -> list[Any]:
        return list(self._all_targets(examples))

    def score(self, predictions: list[Any], examples: Examples, processor: Any) -> dict[str, Any]:
        logits, targets = np.stack(predictions), self._all_targets(examples)
        if self.problem == "regression":
            return metrics.regression_scores(logits[:, 0], targets)
        if self.problem == "multi-label":
            return metrics.multi_label_scores(logits, targets.astype(int), self.threshold)
        return metrics.single_label_scores(logits, targets)

    def describe(self, predictions: list[Any], processor: Any) -> list[dict[str, Any]]:
        logits = np.stack(predictions)
        if self.problem == "regression":
            return [{"value": float(row[0])} for row in logits]
        if self.problem == "multi-label":
            return [
                {
                    "labels": [label for label, p in zip(self.labels, row, strict=True) if p >= self.threshold],
                    "probabilities": dict(zip(self.labels, map(float, row), strict=True)),
                }
                for row in metrics.sigmoid(logits)
            ]
        return [
            {
                "label": self.labels[int(row.argmax())],
                "probability": float(row.max()),
                "probabilities": dict(zip(self.labels, map(float, row), strict=True)),
            }
            for row in metrics.softmax(logits)
        ]


def _items(raw: Any, separator: str, row: int) -> list[Any]:
    if not isinstance(raw, str):
        return list(raw) if isinstance(raw, (list, tuple)) else [raw]
    if (values := parse_list(raw)) is not None:
        return values
    text, parts = raw.strip(), [name.strip() for name in raw.split(separator)]
    is_bracketed = (text[:1], text[-1:]) in (("[", "]"), ("{", "}"), ("(", ")"))
    if is_broken_list(text) or (is_bracketed and len(parts) > 1) or text[:2] in ("{'", '{"'):
        message = f"row {row}: neither a list of classes nor names between {separator!r}"
        hint = 'write a list as JSON, ["a", "b"], or the names without brackets'
        raise UserError(Problem(message, "data.columns.label", value=raw[:200], hint=hint))
    return parts


def class_name(raw: Any, row: int, role: str = "label") -> str:
    """Converts a value to a class name; 1, 1.0 and '1' are the same class. Raises UserError for lists and objects."""
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, float) and raw.is_integer():
        return str(int(raw))
    if isinstance(raw, (str, int, float, Decimal)):
        return str(raw).strip()
    raise _not_a_class(raw, type_name(raw), row, role)


def _not_a_class(raw: Any, kind: str, row: int, role: str) -> UserError:
    message = f"row {row}: a class is needed, not {kind}"
    hint = "write the class name itself; where rows have several classes, choose problem: multi-label"
    return UserError(Problem(message, f"data.columns.{role}", value=repr(raw)[:200], hint=hint))


def sorted_labels(names: Iterable[str]) -> list[str]:
    """Unique class names in order: whole numbers by value, then the others."""
    return sorted(set(names), key=lambda name: (0, int(name), name) if _WHOLE_NUMBER.fullmatch(name) else (1, 0, name))


def unknown_classes(unknown: list[str], labels: list[str]) -> Problem:
    hint = "list every class in data.labels, or correct the data"
    message = "classes that do not occur in the training rows"
    return Problem(message, "data.labels", value=", ".join(unknown[:10]), valid=tuple(labels[:20]), hint=hint)


def _number(raw: Any, row: int) -> float | None:
    if isinstance(raw, str) and not raw.strip():
        return None
    try:
        value = float(raw)
    except (TypeError, ValueError):
        raise UserError(Problem(f"row {row}: a number is needed", "data.columns.label", value=repr(raw))) from None
    if not math.isfinite(value):
        raise UserError(Problem(f"row {row}: a finite number is needed", "data.columns.label", value=repr(raw)))
    return value
