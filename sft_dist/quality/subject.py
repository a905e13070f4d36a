"""What the data check examines: the rows of a recipe's data, prepared as training prepares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sft_dist.data.prepare import Prepared, prepare
from sft_dist.data.rows import ROW, Examples, Rows
from sft_dist.quality.findings import Finding, RowId, RowIndex, make_finding, rows_text
from sft_dist.quality.source import Source
from sft_dist.recipe.errors import NotInCache, UserError
from sft_dist.recipe.references import model_source
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks.base import MediaKind
from sft_dist.run.failures import DataError
from sft_dist.tasks.base import Task
from sft_dist.tasks.models import load_processor

Say = Callable[[str], None]
EXCERPT = 300  # characters of a row shown
BATCH = 1000


@dataclass
class Subject:
    """What is checked: rows by split and, where encoding worked, the examples."""

    recipe: Recipe
    task: Task
    source: Source
    rows: Mapping[str, Rows]
    prepared: Prepared | None
    processor: Any
    examples: Mapping[str, Examples] = field(default_factory=dict)
    failure: str = ""  # why it could not be prepared; reported only where no check says it better
    findings: list[Finding] = field(default_factory=list)  # of encoding
    notes: list[str] = field(default_factory=list)
    media: dict[str, list[Any]] = field(
        default_factory=dict
    )  # role -> facts of all rows, in the order of the row index

    @property
    def row_index(self) -> RowIndex:
        return RowIndex.from_ids({split: rows.ids for split, rows in self.rows.items()})

    def has(self, role: str) -> bool:
        return all(role in rows.table.column_names for rows in self.rows.values())

    def values(self, role: str) -> Iterator[Any]:
        """Yields the values of all rows, split after split, read a batch at a time."""
        for rows in self.rows.values():
            for batch in rows.table.select_columns([role]).iter(batch_size=BATCH):
                yield from batch[role]

    def texts(self, role: str) -> Iterator[str]:
        return map(self.task.stored_texts[role], self.values(role))

    def media_role(self, kind: MediaKind) -> str | None:
        """Returns the first role whose files hold this."""
        return next((role for role, held in self.recipe.task.media.items() if held == kind and self.has(role)), None)

    def classes_of(self, unit: str) -> str | None:
        """Returns the role that holds a class for each row, word, box or pixel."""
        classes = self.task.stored_classes
        return classes.role if classes and classes.unit == unit and self.has(classes.role) else None

    @property
    def target_texts(self) -> list[str]:
        """Returns the roles whose texts are learned, and only learned."""
        return [
            role
            for role in self.task.stored_texts
            if role not in self.task.input_roles and role in self.recipe.task.columns
        ]

    @property
    def label_roles(self) -> list[str]:
        """Returns the roles that hold one label or number of a row."""
        classes = self.task.stored_classes
        return [*self.task.unique_targets] if classes is None or classes.unit == "rows" else []

    def input_texts(self, indices: np.ndarray) -> list[str]:
        """Returns the texts of these rows, sorted indices into the row index; [] where the inputs are not text."""
        texts, first = list[str](), 0
        for rows in self.rows.values():
            selected = indices[(indices >= first) & (indices < first + len(rows))] - first
            texts += self.task.input_texts(Rows(rows.table.select(selected))) if len(selected) else []
            first += len(rows)
        return texts

    def input_tokens(self) -> dict[str, np.ndarray]:
        """Returns split -> (rows,) tokens of the inputs alone, which can be encoded where a label cannot; {} where these cannot
        either."""
        roles = [role for role in self.task.input_roles if self.has(role)]
        if self.processor is None or not roles:
            return {}

        def tokens_of(rows: Rows) -> np.ndarray:
            batches = rows.table.select_columns([*roles, ROW]).iter(batch_size=BATCH)
            return np.concatenate([np.asarray(self.task.encode(batch, self.processor)["length"]) for batch in batches])

        try:
            return {split: tokens_of(rows) for split, rows in self.rows.items()}
        except Exception:  # whatever it is, a finding names the row
            return {}

    @property
    def reads_texts(self) -> bool:
        return bool(self.input_texts(np.arange(1)))


def load_subject(recipe: Recipe, task: Task, source: Source, say: Say) -> Subject:
    """Prepares as the first start does. If that fails, the rows are checked as they are in the source."""
    processor, notes = None, list[str]()
    try:
        processor = load_processor(recipe, task)
    except (OSError, NotInCache) as error:
        notes.append(
            f"lengths were not checked: the processor could not be loaded ({' '.join(str(error).split())[:200]})"
        )
    as_read = {split: Rows(table) for split, table in source.tables.items()}
    say("preparing")
    try:
        prepared = prepare(recipe, task, processor)
    except (UserError, DataError, OSError) as error:
        return Subject(recipe, task, source, as_read, None, processor, notes=notes, failure=_in_one_line(error))
    subject = Subject(recipe, task, source, prepared.splits, prepared, processor, notes=notes)
    if processor is not None:
        say(f"encoding {sum(map(len, prepared.splits.values())):,} rows")
        try:
            subject.examples = prepared.examples
        except (UserError, DataError) as error:
            subject.findings += _not_encoded(subject, error)
    return subject


def _in_one_line(error: Exception) -> str:
    return "; ".join(filter(None, (" ".join(line.split()) for line in str(error).splitlines())))


def _not_encoded(subject: Subject, error: Exception) -> list[Finding]:
    """Encodes row by row to name those that cannot be encoded."""
    kinds: dict[str, list[RowId]] = {}
    messages: dict[str, str] = {}
    for split, rows in subject.rows.items():
        for batch in rows.table.iter(batch_size=BATCH):
            if _encoding_error(subject, batch) is None:
                continue
            for index, row in enumerate(batch[ROW]):
                failure = _encoding_error(subject, {name: [values[index]] for name, values in batch.items()})
                if failure is None:
                    continue
                problem = failure.problems[0] if isinstance(failure, UserError) else None
                path = problem.path if problem else ""
                if path == "data.labels":
                    continue  # the check of classes names them
                kind = "zero-label" if path in ("data.max_length", "task.chat_template") else "not-prepared"
                kinds.setdefault(kind, []).append((split, row))
                messages.setdefault(kind, f"{problem.message}; {problem.hint}" if problem else str(failure))
    if not kinds and not _unknown_classes(subject):
        return [make_finding("not-prepared", " ".join(str(error).split()))]
    return [
        make_finding(kind, f"{rows_text(len(rows))}, such as {messages[kind]}", rows) for kind, rows in kinds.items()
    ]


def _encoding_error(subject: Subject, batch: dict[str, list[Any]]) -> Exception | None:
    try:
        subject.task.encode(batch, subject.processor)
    except Exception as error:  # whatever it is, the row caused it
        return error
    return None


def _unknown_classes(subject: Subject) -> bool:
    counts = count_classes(subject)[0]
    train = counts.get("train", {})
    return any(set(classes) - {*train, *subject.task.labels} for classes in counts.values())


def count_classes(subject: Subject) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, list[RowId]]], str]:
    """Counts classes: split -> class -> number; split -> class -> its first rows; the unit. Empty where there are no classes."""
    counts: dict[str, dict[str, int]] = {}
    first: dict[str, dict[str, list[RowId]]] = {}
    classes = subject.task.stored_classes
    if classes is None or not subject.has(classes.role):
        return {}, {}, ""
    for split, rows in subject.rows.items():
        count, first_rows = counts.setdefault(split, {}), first.setdefault(split, {})
        for number, value in zip(
            rows.ids,
            (v for b in rows.table.select_columns([classes.role]).iter(BATCH) for v in b[classes.role]),
            strict=True,
        ):
            for name, number_of in classes.count(value, subject.task.labels):
                count[name] = count.get(name, 0) + number_of
                rows_of_class = first_rows.setdefault(name, [])
                if len(rows_of_class) < BATCH and (not rows_of_class or rows_of_class[-1][1] != number):
                    rows_of_class.append((split, int(number)))
    return counts, first, classes.unit


def model_config(recipe: Recipe) -> dict[str, Any]:
    """Returns the model's own config; {} where it cannot be read."""
    from transformers import PretrainedConfig

    try:
        config = PretrainedConfig.get_config_dict(model_source(recipe.model.path), revision=recipe.model.revision)[0]
    except (OSError, ValueError, TypeError, RecursionError, UserError):
        return {}
    return config if isinstance(config, dict) else {}


def model_labels(recipe: Recipe) -> dict[int, str] | None:
    names = model_config(recipe).get("id2label")
    return {int(number): str(name) for number, name in names.items()} if names else None


def max_tokens(subject: Subject) -> int:
    """Returns the number of tokens that examples are truncated to."""
    longest = getattr(subject.processor, "model_max_length", None) or subject.recipe.data.max_length
    return int(min(subject.recipe.data.max_length, longest))
