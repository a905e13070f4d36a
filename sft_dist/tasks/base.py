"""What a task is: how a row is read and encoded, which model is trained and with what loss, how predictions are scored.

The loop, the checkpoints, the sweep and the data path know tasks only through `Task`. A task inherits what most have in
common from `BaseTask`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sft_dist.data.clean import plain_text
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from sft_dist.data.rows import Examples, Rows

Rngs = Sequence[np.random.Generator]


class Loss(Protocol):
    """A loss as a sum over examples; `losses.py` says why."""

    def total(self, outputs: Any, targets: Any) -> Tensor:
        """() or, for a loss whose parts have divisors of their own, (parts,)."""


@dataclass(frozen=True)
class StoredClasses:
    """The classes in a stored column."""

    role: str
    # (stored value, class names in the order of the outputs) -> (class, how many)
    count: Callable[[Any, Sequence[str]], Iterable[tuple[str, int]]]
    unit: Literal["rows", "words", "boxes", "pixels"] = "rows"  # what has a class


class Task(Protocol):
    """One object a recipe. It is sent to processes that prepare data, so it holds settings and nothing heavy."""

    pipeline_tag: ClassVar[str]  # the hub's name for such models
    peft_task: ClassVar[
        str | None
    ]  # PEFT's name for the kind of head, which tells it what to train beside the adapters
    counts_tokens: ClassVar[bool]  # an example's `length` is in tokens that take up positions of the model
    input_roles: ClassVar[tuple[str, ...]]  # what `predict` is given
    text_roles: ClassVar[tuple[str, ...]]  # roles whose values are texts, cleaned before `read`
    recipe: Recipe
    labels: list[str]  # class names in the order of the outputs; empty where there are none
    row_features: Features  # of stored rows, without their number
    encoded_features: Features | None  # of those encoded columns whose type cannot be seen from any few examples

    def complete_export(self, folder: Path) -> None:
        """Adds to an exported folder what other tools need to answer as `predict` does, and weights do not say."""

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        """A row of the source, role -> value, with the texts of `text_roles` cleaned and media as {"path", "bytes"} -> the
        row as it is stored, or why it is dropped ("no label", "empty text"). Raises UserError naming the row."""

    def identity(self, row: dict[str, Any]) -> str | bytes:
        """Of a stored row: equal for the same input, whatever is to be learned from it."""

    def num_chars(self, row: dict[str, Any]) -> int:
        """Of all texts in a stored row; `data.clean.max_chars` is the most."""

    @property
    def stored_texts(self) -> Mapping[str, Callable[[Any], str]]:
        """Stored column of texts -> the text in a value; the first is the main one. The data check reads and shows them."""

    @property
    def stored_classes(self) -> StoredClasses | None:
        """None where rows have no classes."""

    @property
    def unique_targets(self) -> tuple[str, ...]:
        """Stored columns of which an input has one right value, such as a class: equal inputs with different ones conflict."""

    def input_texts(self, rows: Rows) -> list[str]:
        """Text of each stored row by which near-duplicates are detected; [] where the inputs are not texts."""

    def question_of(self, row: dict[str, Any], number: int) -> dict[str, str]:
        """What `predict` is asked by a row of the source, role -> value, of tasks whose columns are all optional: input role
        -> text for `from_input`. Raises UserError naming the row."""

    def unread(self, row: dict[str, Any]) -> Iterable[str]:
        """Names of what a row of the source has and `read` ignores; asked only of tasks whose columns are all optional."""

    def learn_labels(self, train: Rows) -> None:
        """Fix `labels` from the training rows, unless the recipe gives them. Raises UserError."""

    def strata(self, train: Rows) -> list[Hashable] | None:
        """What to keep in equal shares when splitting; None when that has no meaning."""

    def from_input(self, row: dict[str, Any]) -> dict[str, Any]:
        """What `predict` was given, role -> text or medium -> the row as it would be stored, without targets."""

    # ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────
    def load_processor(self, source: str, **options: Any) -> Any:
        """Tokenizer, image processor, feature extractor or processor, as `from_pretrained` of `source` has it."""

    def encode(self, rows: dict[str, list[Any]], processor: Any) -> dict[str, list[Any]]:
        """Stored rows -> columns of encoded examples, `length` among them and perhaps `truncated`. Rows for `predict`
        have no targets, and no columns for targets are made then. Media stay as they are until `collate`."""

    def arrange(self, examples: Dataset, split: str) -> Dataset:
        """All encoded examples of a split -> those to use."""

    def class_numbers(self, examples: Examples) -> np.ndarray:
        """(examples,) class of each, for `data.sampling: balanced`; asked only of tasks with one class for an example."""

    def collate(self, rows: list[dict[str, Any]], processor: Any, rngs: Rngs | None) -> tuple[dict[str, Any], Any]:
        """Encoded examples -> padded model inputs, and targets (None when there are none).

        `rngs`: on the training split one for each example, a pure function of seed, epoch, example and draw; augmentation
        draws from these alone. None: no augmentation.
        """

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        """`options` are of `from_pretrained`. Without them neither code nor a pickle is loaded."""

    def build_loss(self, train: Examples) -> Loss: ...

    def weights(self, loss: Any, examples: Examples) -> np.ndarray:
        """What each example adds to the divisor of its step, (examples,) or (examples, parts)."""

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The outputs a loss is computed from."""

    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Any, processor: Any) -> list[Any]:
        """One prediction an example, small and on the CPU; `model` is not wrapped, for those that generate."""

    def score(self, predictions: list[Any], examples: Examples, processor: Any) -> dict[str, Any]:
        """Score -> number or None; lists and mappings for details."""

    def references(self, examples: Examples) -> list[Any]:
        """What an installed metric compares each prediction with. Raises UserError for a task without references."""

    def describe(self, predictions: list[Any], processor: Any) -> list[dict[str, Any]]:
        """What `predict` says about each example."""


class BaseTask:
    """What most tasks have in common."""

    peft_task: ClassVar[str | None] = None
    counts_tokens: ClassVar[bool] = False
    text_roles: ClassVar[tuple[str, ...]] = ()
    input_roles: ClassVar[tuple[str, ...]] = ()
    row_features: Features
    encoded_features: Features | None = None

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.labels: list[str] = list(recipe.data.labels or [])

    def complete_export(self, folder: Path) -> None:
        return None

    def identity(self, row: dict[str, Any]) -> str | bytes:
        return "\0".join(str(row.get(role) or "") for role in self.input_roles)

    def num_chars(self, row: dict[str, Any]) -> int:
        return sum(len(row.get(role) or "") for role in self.text_roles)

    def input_texts(self, rows: Rows) -> list[str]:
        roles = [role for role in self.text_roles if role in self.input_roles and role in self.row_features]
        return ["\n".join(parts) for parts in zip(*(rows.column(role) for role in roles), strict=True)]

    @property
    def stored_texts(self) -> Mapping[str, Callable[[Any], str]]:
        return {role: as_text for role in self.text_roles if role in self.row_features}

    @property
    def stored_classes(self) -> StoredClasses | None:
        has_label = self.recipe.task.has_classes and "label" in self.row_features
        return StoredClasses("label", count_labels) if has_label else None

    @property
    def unique_targets(self) -> tuple[str, ...]:
        task = self.recipe.task
        other = {*self.input_roles, *self.stored_texts, *task.media}
        return tuple(role for role in self.row_features if role in task.columns and role not in other)

    def class_numbers(self, examples: Examples) -> np.ndarray:
        return examples.numbers("label")

    def from_input(self, row: dict[str, Any]) -> dict[str, Any]:
        return row

    def question_of(self, row: dict[str, Any], number: int) -> dict[str, str]:
        return {role: "" if row.get(role) is None else plain_text(row[role], role, number) for role in self.input_roles}

    def unread(self, row: dict[str, Any]) -> Iterable[str]:
        return ()

    def learn_labels(self, train: Rows) -> None:
        return None

    def strata(self, train: Rows) -> list[Hashable] | None:
        return None

    def arrange(self, examples: Dataset, split: str) -> Dataset:
        return examples

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        return model(**inputs).logits.float()

    def references(self, examples: Examples) -> list[Any]:
        settings = self.recipe.task
        hint = f"{settings.work} needs a method `references`"
        message = f"task {settings.type} names nothing that an installed metric could compare with"
        raise UserError(Problem(message, "evaluate.metric", value=self.recipe.evaluate.metric, hint=hint))

    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Tensor, processor: Any) -> list[Any]:
        return list(outputs.detach().to("cpu", torch.float32).numpy())


def as_text(value: Any) -> str:
    return value or ""


def count_labels(value: Any, labels: Sequence[str]) -> Iterable[tuple[str, int]]:
    """Counts each class of a row once: a class name, or a list of them."""
    return ((name, 1) for name in (value if isinstance(value, list) else [value]))
