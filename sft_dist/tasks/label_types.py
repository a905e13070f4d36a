"""What the label of an example can be: one class, any number of classes, or a number. Each type knows how labels are read,
encoded, scored and shown."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from datasets import List, Value
from torch import Tensor

from sft_dist.data.clean import type_name
from sft_dist.data.text_lists import is_broken_list, parse_list
from sft_dist.losses.classification import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelLosses
from sft_dist.metrics import classification as metrics
from sft_dist.recipe.errors import Problem, UserError

if TYPE_CHECKING:
    from sft_dist.data.rows import Examples, Rows

_SEPARATORS = {",", ";", "|"}
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True)
class LabelOptions:
    """The settings of a recipe that say how labels are read and shown."""

    valid: list[str] | None = None  # `data.labels`
    renamed: dict[str, str] = field(default_factory=dict)  # `data.clean.map_labels`
    threshold: float = 0.5
    separator: str = ","

    def valid_class(self, name: str, row: int) -> str:
        """Returns the class that a name stands for. Raises UserError when `data.labels` does not have it."""
        name = self.renamed.get(name, name)
        if self.valid and name not in self.valid:
            hint = _hint_for(name, self.valid)
            message = f"row {row}: not one of data.labels"
            raise UserError(Problem(message, "data.labels", value=name, valid=tuple(self.valid[:20]), hint=hint))
        return name


class LabelType(Protocol):
    """`labels` are the class names in the order of the outputs; empty where there are none."""

    problem_type: ClassVar[str]  # the name of transformers
    min_classes: ClassVar[int]  # that a model needs
    losses: ClassVar[LabelLosses]
    feature: ClassVar[Any]  # type of labels in stored rows
    target_feature: ClassVar[Any]  # type of labels in encoded examples

    @property
    def threshold(self) -> float | None:
        """Returns the probability from which on a class counts as predicted; None where one class is chosen or none."""

    def parse(self, raw: Any, row: int, labels: list[str]) -> Any | None:
        """Converts a label of the source to its stored form; None when there is none. Raises UserError naming the row."""

    def learn(self, train: Rows) -> list[str]:
        """Returns the class names in the training rows."""

    def strata(self, train: Rows) -> list[Hashable] | None:
        """Returns what to keep in equal shares when splitting; None when that has no meaning."""

    def numbers_of(self, stored: list[Any], labels: list[str]) -> list[Any]:
        """Converts stored labels to their encoded form. Raises UserError for an unknown class."""

    def targets_of(self, numbers: list[Any], labels: list[str]) -> Tensor:
        """Converts encoded labels to the targets of a loss."""

    def targets_in(self, examples: Examples, labels: list[str]) -> np.ndarray:
        """Returns the targets of a whole split."""

    def scores(self, logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]: ...

    def describe(self, logits: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
        """Returns what `predict` prints for each example."""


@dataclass(frozen=True)
class OneClass:
    """Stored as a class name, encoded as its number."""

    problem_type: ClassVar[str] = "single_label_classification"
    min_classes: ClassVar[int] = 2
    losses: ClassVar[LabelLosses] = SINGLE_LABEL
    feature: ClassVar[Any] = Value("string")
    target_feature: ClassVar[Any] = Value("int64")
    threshold: ClassVar[None] = None

    options: LabelOptions

    def parse(self, raw: Any, row: int, labels: list[str]) -> str | None:
        if _is_missing(raw):
            return None
        if isinstance(raw, str) and parse_list(raw) is not None and raw.strip() not in labels:
            raise _not_a_class(raw, "a list", row, "label")
        name = class_name(raw, row)
        return self.options.valid_class(name, row) if name else None

    def learn(self, train: Rows) -> list[str]:
        return sorted_labels(train.codes("label")[1])

    def strata(self, train: Rows) -> list[Hashable]:
        codes, names = train.codes("label")
        return [names[code] for code in codes]

    def numbers_of(self, stored: list[Any], labels: list[str]) -> list[int]:
        number = _numbers(set(stored), labels)
        return [number[name] for name in stored]

    def targets_of(self, numbers: list[Any], labels: list[str]) -> Tensor:  # -> (examples,)
        return torch.tensor(numbers, dtype=torch.int64)

    def targets_in(self, examples: Examples, labels: list[str]) -> np.ndarray:
        return examples.numbers("label")

    def scores(self, logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        return metrics.single_label_scores(logits, targets)

    def describe(self, logits: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "label": labels[int(row.argmax())],
                "probability": float(row.max()),
                "probabilities": dict(zip(labels, map(float, row), strict=True)),
            }
            for row in metrics.softmax(logits)
        ]


@dataclass(frozen=True)
class ManyClasses:
    """Stored as a list of class names, encoded as their numbers in ascending order."""

    problem_type: ClassVar[str] = "multi_label_classification"
    min_classes: ClassVar[int] = 1
    losses: ClassVar[LabelLosses] = MULTI_LABEL
    feature: ClassVar[Any] = List(Value("string"))
    target_feature: ClassVar[Any] = List(Value("int64"))

    options: LabelOptions

    @property
    def threshold(self) -> float:
        return self.options.threshold

    def parse(self, raw: Any, row: int, labels: list[str]) -> list[str] | None:
        """Reads class names of a list, a text of such a list, names between separators, or a vector of 0 and 1. A class that
        occurs twice counts once."""
        if _is_missing(raw):
            return None
        values = _items(raw, self.options.separator, row)
        if self._is_vector(values, row):
            assert self.options.valid is not None
            names = [name for name, value in zip(self.options.valid, values, strict=True) if float(value)]
        else:
            names = [class_name(value, row) for value in values if value is not None]
        return list(dict.fromkeys(self.options.valid_class(name, row) for name in names if name))

    def _is_vector(self, values: list[Any], row: int) -> bool:
        """Checks whether values are 0 or 1 for each of data.labels. Raises UserError where they could also be class names."""
        values = [int(value) if isinstance(value, bool) else value for value in values]
        names = [class_name(value, row) for value in values if value is not None]
        is_written = all(isinstance(value, str) for value in values)
        is_binary = len(values) > 1 and len(names) == len(values) and set(names) <= {"0", "1"}
        if not is_binary or (is_written and not self.options.valid and len(set(names)) == len(names)):
            return False
        given = self.options.valid or []
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

    def learn(self, train: Rows) -> list[str]:
        labels = sorted_labels(name for stored in train.column("label") for name in stored)
        _refuse_joined(labels, self.options.separator)
        return labels

    def strata(self, train: Rows) -> None:
        return None

    def numbers_of(self, stored: list[Any], labels: list[str]) -> list[list[int]]:
        number = _numbers({name for names in stored for name in names}, labels)
        return [sorted({number[name] for name in names}) for names in stored]

    def targets_of(self, numbers: list[Any], labels: list[str]) -> Tensor:  # -> (examples, classes) of zeros and ones
        hot = torch.zeros(len(numbers), len(labels))
        for row, classes in enumerate(numbers):
            hot[row, classes] = 1
        return hot

    def targets_in(self, examples: Examples, labels: list[str]) -> np.ndarray:
        return self.targets_of(examples.column("label"), labels).numpy()

    def scores(self, logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        return metrics.multi_label_scores(logits, targets.astype(int), self.threshold)

    def describe(self, logits: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "labels": [label for label, p in zip(labels, row, strict=True) if p >= self.threshold],
                "probabilities": dict(zip(labels, map(float, row), strict=True)),
            }
            for row in metrics.sigmoid(logits)
        ]


@dataclass(frozen=True)
class Number:
    """Stored and encoded as it is: the target of a regression."""

    problem_type: ClassVar[str] = "regression"
    min_classes: ClassVar[int] = 0
    losses: ClassVar[LabelLosses] = REGRESSION
    feature: ClassVar[Any] = Value("float64")
    target_feature: ClassVar[Any] = Value("float32")
    threshold: ClassVar[None] = None

    options: LabelOptions

    def parse(self, raw: Any, row: int, labels: list[str]) -> float | None:
        if _is_missing(raw) or (isinstance(raw, str) and not raw.strip()):
            return None
        try:
            value = float("" if isinstance(raw, str) and "_" in raw else raw)  # Python reads 1_000
        except (TypeError, ValueError):
            advice = "write it with a decimal point, and without a unit or separators of thousands"
            hint = advice if isinstance(raw, str) else ""
            problem = Problem(f"row {row}: a number is needed", "data.columns.label", value=repr(raw), hint=hint)
            raise UserError(problem) from None
        if not math.isfinite(value):
            raise UserError(Problem(f"row {row}: a finite number is needed", "data.columns.label", value=repr(raw)))
        return value

    def learn(self, train: Rows) -> list[str]:
        return []

    def strata(self, train: Rows) -> None:
        return None

    def numbers_of(self, stored: list[Any], labels: list[str]) -> list[Any]:
        return stored

    def targets_of(self, numbers: list[Any], labels: list[str]) -> Tensor:  # -> (examples,)
        return torch.tensor(numbers, dtype=torch.float32)

    def targets_in(self, examples: Examples, labels: list[str]) -> np.ndarray:
        return examples.numbers("label")

    def scores(self, logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        return metrics.regression_scores(logits[:, 0], targets)

    def describe(self, logits: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
        return [{"value": float(row[0])} for row in logits]


# `Kind.classes` of the recipe's task -> the type of its labels.
LABEL_TYPES: dict[str, Callable[[LabelOptions], LabelType]] = {"one": OneClass, "many": ManyClasses, "none": Number}


def _is_missing(raw: Any) -> bool:
    return raw is None or (isinstance(raw, float) and math.isnan(raw))


def _numbers(names: set[str], labels: list[str]) -> dict[str, int]:
    """Returns class -> number. Raises UserError for names that are not among the labels."""
    number = {label: i for i, label in enumerate(labels)}
    if unknown := sorted(names - set(number)):
        raise UserError(unknown_classes(unknown, labels))
    return number


def _hint_for(name: str, labels: list[str]) -> str:
    """Of numbers only a data set that names its own classes says which is which."""
    if name.isdecimal() and not any(label.isdecimal() for label in labels):
        return (
            f"a number is read as the name of a class: name them in data.clean.map_labels, such as {{{name!r}: "
            f"{labels[min(int(name), len(labels) - 1)]}}} if they count data.labels from 0, or list the numbers in data.labels"
        )
    matches = difflib.get_close_matches(name, labels, 1)
    return f"did you mean `{matches[0]}`?" if matches else ""


def _refuse_joined(labels: list[str], separator: str) -> None:
    """Raises UserError where classes are joined by another separator than the recipe's: their parts are classes, too."""
    for candidate in _SEPARATORS - {separator}:
        joined = {label: {name.strip() for name in label.split(candidate)} for label in labels if candidate in label}
        counts = Counter(name for names in joined.values() for name in names)
        counts.update(set(labels) - set(joined))
        if label := next((label for label, names in joined.items() if any(counts[name] > 1 for name in names)), None):
            hint = f"set task.label_separator: {candidate!r}"
            raise UserError(
                Problem(f"classes are joined by {candidate!r}", "task.label_separator", value=label, hint=hint)
            )


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
