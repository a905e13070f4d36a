"""Rows as the source has them, before anything is dropped: every row that cannot be read is named, not only the first."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Dataset, DatasetDict, Image

from sft_dist.data.cached_folder import cached_folder
from sft_dist.data.columns import columns_of
from sft_dist.data.formats.cache import streams_folder
from sft_dist.data.formats.dialect import DELIMITERS, dialect_of, fields_of_any_size
from sft_dist.data.formats.media import as_stored
from sft_dist.data.read_rows import IDENTITY, REASON, TARGET, read_row, read_rows
from sft_dist.data.rows import ROW, Rows
from sft_dist.data.sources import load_rows, stream_tables
from sft_dist.quality.findings import Finding, RowId, RowIndex, make_finding, rows_text, share_text
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.fingerprint import data_fingerprint
from sft_dist.recipe.references import classify, resolve, sources_of, suffix_of
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks.base import MediaKind
from sft_dist.tasks.base import Task

# What a medium is called that cannot be read, or is missing.
UNREADABLE: dict[MediaKind, str] = {
    "image": "unreadable-image",
    "mask": "unreadable-image",
    "audio": "unreadable-audio",
}
# What a row is called by the reason it is dropped for.
REASONS = (
    (r"no label$", "empty-label"),
    (r"empty (source|text|conversation)", "empty-text"),
    (r"empty target|no answer|empty answer", "empty-target"),
    (r"begins with an answer", "unreadable-row"),
    (r"no labelled pixel", "zero-label"),
    (r"longer than .* seconds", "too-long-audio"),
)
_FAULT = "fault "
_NOT_UTF8 = "not UTF-8"


@dataclass(frozen=True)
class Source:
    tables: dict[str, Dataset] = field(default_factory=dict)  # split -> rows that can be read, as the task stores them
    inputs: dict[str, np.ndarray] = field(default_factory=dict)  # split -> (rows,) digests of the inputs
    targets: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # split -> (rows,) digests of what is learned from them
    findings: tuple[Finding, ...] = ()
    raw: dict[str, Dataset] = field(default_factory=dict)  # split -> everything, as it is

    def row_index(self) -> RowIndex:
        return RowIndex.from_ids(
            {split: np.asarray(table.with_format("numpy")[ROW][:]) for split, table in self.tables.items()}
        )


def recipe_of_first_chunk(recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """The recipe with the first block of its stream for training rows, and the other splits as they are: from disk."""
    data = recipe.data
    assert data.streaming is not None
    folder = streams_folder() / data_fingerprint(recipe)[:20]
    say(f"reading the first {data.streaming.buffer:,} rows of the stream")

    def build(to: Path) -> None:
        train = next(stream_tables(data, media=[*recipe.task.media]), None)
        if train is None:
            raise UserError(Problem("the stream has no rows", "data.source"))
        splits = {"train": train, **load_rows(data, [*recipe.task.media])}
        # As texts: `datasets` opens the files of its own columns when it saves them.
        DatasetDict({split: as_stored(rows) for split, rows in splits.items()}).save_to_disk(str(to))

    with cached_folder(folder, build):
        pass
    no_shares = data.split.model_copy(update={"validation": 0.0, "test": 0.0})
    changes = {"source": str(folder), "format": "auto", "weights": None, "streaming": None, "split": no_shares}
    return recipe.model_copy(update={"data": data.model_copy(update=changes)})


def read_source(recipe: Recipe, task: Task, scratch: Path, say: Callable[[str], None]) -> Source:
    """Raises UserError for what is wrong with the recipe and not with its data."""
    say("reading the source")
    try:
        raw = load_rows(recipe.data, [*recipe.task.media])
    except UserError as error:
        if _NOT_UTF8 in str(error):
            return Source(findings=tuple(_bad_utf8(recipe, error)))
        raise
    keeping = recipe.data.clean.model_copy(
        update={"drop_empty": True}
    )  # a finding instead of an error at the first one
    lenient = recipe.model_copy(update={"data": recipe.data.model_copy(update={"clean": keeping})})
    forgiving: Any = _Forgiving(task)
    tables, inputs, targets, findings = {}, {}, {}, list[Finding]()
    faults: dict[str, list[tuple[RowId, str]]] = {}
    for split, source in raw.items():
        try:
            columns_of(source, recipe)
        except UserError as error:
            if error.problems[0].path == "data.source":  # the file is at fault, not the columns
                raise
            findings.append(_missing(split, error))
            continue
        say(f"reading {len(source):,} rows of {split}")
        read = read_rows(source, split, lenient, forgiving, scratch)
        findings += _unread(split, source, recipe, task)  # after `read_rows`, which names texts that are not UTF-8
        reasons = read.with_format("arrow")[:].column(REASON).to_pylist()
        numbers = np.asarray(read.with_format("numpy")[ROW][:])
        for reason, number in zip(reasons, numbers, strict=True):
            if reason is not None and (fault := _kind_of(reason, task)):
                faults.setdefault(fault[0], []).append(((split, int(number)), fault[1]))
        good = read.select([index for index, reason in enumerate(reasons) if reason is None])
        inputs[split], targets[split] = (
            Rows(good).numbers(name).view(np.uint64) if len(good) else np.array([], dtype=np.uint64)
            for name in (IDENTITY[0], TARGET)
        )
        tables[split] = good.remove_columns([REASON, *IDENTITY, TARGET])
    for kind, rows in faults.items():
        example = next((text for _, text in rows if text), "")
        message = rows_text(len(rows)) + (f", such as {example}" if example else "")
        findings.append(make_finding(kind, message, [row for row, _ in rows]))
    return Source(tables, inputs, targets, tuple(findings), raw)


def _kind_of(reason: str, task: Task) -> tuple[str, str] | None:
    """(kind, what to say); None: dropped as the recipe wants it."""
    if reason.startswith(_FAULT):
        kind, message = json.loads(reason[len(_FAULT) :])
        return kind, message
    match = re.match(r"(no|empty) (\w+)", reason)
    state, role = match.groups() if match else ("", "")
    media = task.recipe.task.media
    if state == "no" and role in media:
        return UNREADABLE[media[role]], ""
    learned = [role for role in task.stored_texts if role not in task.input_roles]
    for pattern, kind in REASONS:
        if re.match(pattern, reason):
            return "empty-target" if role in learned or (learned and kind == "empty-label") else kind, ""
    return None


def _kind_at(path: str, task: Task) -> str:
    """Returns the kind of a fault by the key path of the error that a row raised."""
    media, classes = task.recipe.task.media, task.stored_classes
    if path == "data.labels":
        return "mask-value" if "mask" in media.values() else "unknown-label"
    role = path.removeprefix("data.columns.")
    if role in media:
        return UNREADABLE[media[role]]
    return "unreadable-boxes" if classes and classes.unit == "boxes" and role == classes.role else "unreadable-row"


@dataclass
class _Forgiving:
    """A task whose rows with a mistake are dropped for it, so that reading continues. Sent to other processes."""

    task: Task

    def __post_init__(self) -> None:
        self.text_roles, self.row_features = self.task.text_roles, self.task.row_features
        self.input_roles = self.task.input_roles

    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        try:
            return read_row(self.task, row, number)
        except UserError as error:
            problem = error.problems[0]
            message = problem.message + (f" (found: {problem.value})" if problem.value is not None else "")
            return _FAULT + json.dumps([_kind_at(problem.path, self.task), message])

    def identity(self, row: dict[str, Any]) -> str | bytes:
        return self.task.identity(row)

    def num_chars(self, row: dict[str, Any]) -> int:
        return self.task.num_chars(row)


def _unread(split: str, source: Dataset, recipe: Recipe, task: Task) -> Iterator[Finding]:
    """Columns and keys that are ignored, of tasks that recognise columns by their names alone."""
    if set(recipe.task.columns.values()) != {"if present"}:
        return
    for name, feature in source.features.items():
        if isinstance(feature, Image | Audio):
            source = source.cast_column(name, type(feature)(decode=False))
    column_by_role = columns_of(source, recipe)
    used = {*column_by_role.values(), *recipe.data.where, recipe.data.split.group}
    names = column_by_role | {name: name for name in source.column_names if name not in used}
    rows: dict[str, list[RowId]] = {}
    for number, row in enumerate(source):
        try:
            for key in task.unread({role: row[name] for role, name in names.items()}):
                rows.setdefault(key, []).append((split, number))
        except (TypeError, ValueError, RecursionError):  # the row cannot be read, which is a finding of its own
            continue
    for key, row_ids in rows.items():
        yield make_finding(
            "unread-key", f"`{key}` is not read: {share_text(len(row_ids), len(source))} of {split}", row_ids
        )


def _missing(split: str, error: UserError) -> Finding:
    problem: Problem = error.problems[0]
    if problem.path == "data.columns":
        message = (
            f"{split}: {problem.message}; it has {problem.value}; known are {', '.join(problem.valid)}; {problem.hint}"
        )
        return make_finding("missing-column", message)
    role = problem.path.rsplit(".", 1)[-1]
    columns = ", ".join(problem.valid)
    message = f"{split} has no column {problem.value!r}, which is to be read as {role}; it has {columns}"
    return make_finding("missing-column", message, role=role, columns=list(problem.valid))


# ── bytes that are no text ──────────────────────────────────────────────────────────────────────────────────────────
def _bad_utf8(recipe: Recipe, error: UserError) -> Iterator[Finding]:
    """All rows with bytes that are not UTF-8, of local tables and lines; at least what the reader said of the first."""
    rows = []
    for path, text in sources_of(recipe.data):
        split = path.split(".")[2] if path.startswith("data.source.") and not path[12:].isdigit() else "train"
        resolved = resolve(classify(text, Path.cwd()))
        files = (
            resolved
            if isinstance(resolved, list)
            else [resolved]
            if isinstance(resolved, Path) and resolved.is_file()
            else []
        )
        start = 0
        for file in files:
            bad, length = bad_rows(file)
            rows += [(split, start + row) for row in bad]
            start += length
    problem = error.problems[0]
    yield make_finding("bad-utf-8", problem.message.removeprefix("could not be read: "), rows)


def bad_rows(file: Path) -> tuple[list[int], int]:
    """Rows of a table or file of lines that hold bytes which are not UTF-8, and how many rows there are."""
    suffix = suffix_of(file)
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines, fields_of_any_size():
        if (name := suffix.removeprefix(".")) in DELIMITERS:
            fields = dialect_of(str(file), name).reader(lines)
            rows: Iterator[str] = ("\0".join(row) for row in fields if row)
            next(rows, None)  # the header
        else:
            rows = (line for line in lines if line.strip())
        bad, count = [], 0
        for count, row in enumerate(rows, start=1):
            if any("\udc80" <= letter <= "\udcff" for letter in row):
                bad.append(count - 1)
    return bad, count


def named_files(source: Source, recipe: Recipe) -> list[str]:
    """The files of images and sounds, as the source names them, each once."""
    files = set[str]()
    for table in source.raw.values():
        columns = columns_of(table, recipe)
        for name in (columns[role] for role in recipe.task.media if role in columns):
            for batch in table.select_columns([name]).with_format("arrow").iter(1000):
                values = batch.column(name).combine_chunks()
                if pa.types.is_struct(values.type):
                    values = pc.if_else(pc.is_valid(values.field("bytes")), None, values.field("path"))
                files.update(path for path in values.to_pylist() if isinstance(path, str))
    return sorted(files)


def raw_boxes(source: Source, recipe: Recipe, role: str) -> Iterator[tuple[str, int, list[list[float]]]]:
    """(split, row, boxes) before the task skips any."""
    for split, table in source.raw.items():
        name = columns_of(table, recipe).get(role)
        if name is None:
            continue
        for row, objects in enumerate(table.select_columns([name])[name]):
            entries = objects if isinstance(objects, list) else [objects]
            boxes = [
                entry["bbox"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("bbox"), list)
            ]
            boxes = boxes if isinstance(objects, list) else boxes[0] if boxes else []
            yield split, row, [box for box in boxes if isinstance(box, list)]
