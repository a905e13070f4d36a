"""From a recipe to cleaned, labelled, divided and encoded examples, prepared once and kept.

What is prepared lies under the cache's `prepared/`, named after everything it depends on: the data's settings and files,
the processor's own files, this code. The first process that needs it makes it, under a file lock; every later start, rank, point of
a sweep and evaluation maps it into memory. Nothing here needs a GPU or another process.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import xxhash
from datasets import Audio, ClassLabel, Dataset, Features, Image, List, Value

from sft_dist.data.cached_folder import cached_folder
from sft_dist.data.clean import clean_text, near_duplicates, type_name
from sft_dist.data.encode import encode
from sft_dist.data.formats.dialect import undivided
from sft_dist.data.images import content
from sft_dist.data.rows import GROUP, ROW, Examples, Rows
from sft_dist.data.sources import load_rows
from sft_dist.data.splits import draw, hold_out
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import cache_root, read_json, write_json
from sft_dist.recipe.fingerprint import data_fingerprint
from sft_dist.recipe.schema import SPLITS, Data, Recipe

if TYPE_CHECKING:
    from sft_dist.tasks.base import Task

DEFAULT_SHARE = 0.1
BATCH = 1000  # rows handled at a time
EMPTY = ("no label", "empty text", "empty conversation", "no answer", "empty answer")  # what `drop_empty` drops
MIN_ROWS_FOR_PROCESSES = 50_000  # rows from which on several processes are worth their start
REASON, IDENTITY, TARGET = "dropped for", ("input, first half", "input, second half"), "what is learned"


class NoRowsLeft(UserError):
    """Every row was dropped."""


@dataclass(frozen=True)
class Prepared:
    """What a recipe's data becomes. Fixes the labels of `task`."""

    task: Task
    processor: Any
    folder: Path
    dropped: dict[str, int]  # reason -> rows, over all splits
    splits: dict[str, Rows]
    contents: dict[str, str]  # split -> SHA-256 of what its rows hold, in their order

    @cached_property
    def examples(self) -> dict[str, Examples]:
        """Encoded splits; made when they are asked for, unless they are there."""
        return _examples(self)


def prepare(recipe: Recipe, task: Task, processor: Any = None) -> Prepared:
    """Read, filter, clean, divide; encode when `examples` is asked for, which needs the processor. Raises UserError."""
    folder = cache_root() / "prepared" / _key(data_fingerprint(recipe))
    with cached_folder(folder / "rows", lambda to: _build_rows(recipe, task, to)) as rows:
        about = read_json(rows / "about.json") or {}
        splits = {split: Rows(Dataset.load_from_disk(str(rows / split))) for split in about["splits"]}
    task.labels = about["labels"]
    return Prepared(task, processor, folder, about["dropped"], splits, about["contents"])


def prepared_examples(recipe: Recipe, task: Task, processor: Any) -> dict[str, Examples]:
    """The encoded splits where this machine has the rows prepared, else none. Raises UserError where a file of the data is gone."""
    rows = cache_root() / "prepared" / _key(data_fingerprint(recipe)) / "rows"
    return prepare(recipe, task, processor).examples if rows.is_dir() else {}


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _build_rows(recipe: Recipe, task: Task, to: Path) -> None:
    data, dropped = recipe.data, Counter[str]()
    tables = {
        split: _clean(source, split, recipe, task, dropped, to)
        for split, source in load_rows(data, [*recipe.task.media]).items()
    }
    if data.streaming is None:
        tables = _divided(tables, data, task, dropped)
    for split, table in tables.items():
        _stored(table).save_to_disk(str(to / split))
    about = {
        "splits": [split for split in SPLITS if split in tables],
        "dropped": dict(dropped),
        "labels": task.labels,
        "contents": {split: _contents(Rows(table)) for split, table in tables.items()},
    }
    write_json(to / "about.json", about)
    _clear(to)


def _stored(table: Dataset) -> Dataset:
    """Without the columns by which rows are distinguished."""
    return table.remove_columns([name for name in (*IDENTITY, TARGET) if name in table.column_names])


def _contents(rows: Rows) -> str:
    digests = np.stack([rows.numbers(name) for name in (*IDENTITY, TARGET)])
    return hashlib.sha256(digests.tobytes()).hexdigest()


def _divided(tables: dict[str, Dataset], data: Data, task: Task, dropped: Counter[str]) -> dict[str, Dataset]:
    """With the splits that the source does not have, held out of its training rows, from which labels are learned."""
    sample = draw(len(tables["train"]), data.limit, data.split.seed)
    if len(sample) < len(tables["train"]):
        dropped["limit"] += len(tables["train"]) - len(sample)
        tables = {**tables, "train": tables["train"].select(sample)}
    shares = {}
    for split in ("test", "validation"):
        share = getattr(data.split, split)
        if split not in tables:
            shares[split] = DEFAULT_SHARE if share is None else share
    train = Rows(tables["train"])
    groups = train.column(GROUP) if data.split.group else None
    strata = task.strata(train) if data.split.stratify and groups is None else None
    if data.clean.drop_duplicates and groups is None:
        first, inputs = _inputs(train)
        divided = hold_out(len(first), shares, data.split.seed, strata and [strata[i] for i in first])
        indices_by_split = {split: np.flatnonzero(np.isin(inputs, numbers)) for split, numbers in divided.items()}
    else:
        indices_by_split = hold_out(len(train), shares, data.split.seed, strata, groups)
    tables = {**tables, **{split: tables["train"].select(indices) for split, indices in indices_by_split.items()}}
    if data.split.group:
        _refuse_shared_groups({split: set(Rows(table).codes(GROUP)[1]) for split, table in tables.items()})
    task.learn_labels(Rows(tables["train"]))
    return tables


def _refuse_shared_groups(groups: dict[str, set[str]]) -> None:
    """Splits that the source has may share groups; those that are made here do not."""
    for first, second in combinations([split for split in SPLITS if split in groups], 2):
        if shared := sorted(groups[first] & groups[second]):
            remainder = f" and {len(shared) - 10:,} more" if len(shared) > 10 else ""
            message = f"groups in both {first} and {second}: {', '.join(shared[:10])}{remainder}"
            hint = "move each group into one of the splits, or remove data.split.group"
            raise UserError(Problem(message, "data.split.group", hint=hint))


def _inputs(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Rows with an input that was not there before, sorted, and for each row the number of its input among these. Several
    references of one source, or labels of one text, are divided as one row: else what is trained on is also tested on."""
    codes, _ = pd.factorize(pd.MultiIndex.from_arrays([rows.numbers(half) for half in IDENTITY]))
    return np.flatnonzero(~pd.Series(codes).duplicated().to_numpy()), codes


def prepare_chunk(
    source: Dataset, first: int, recipe: Recipe, task: Task, processor: Any, to: Path
) -> tuple[Examples, dict[str, int]]:
    """Training rows of a stream, the first of which has this number -> encoded examples, saved as `examples` under `to`, and
    how many rows are dropped for what reason. Duplicates are those within these rows. Raises NoRowsLeft, or UserError."""
    dropped = Counter[str]()
    rows = Rows(_stored(_clean(source, "train", recipe, task, dropped, to, first)))
    examples = task.arrange(_encode(rows, "train", task, processor, to), "train")
    examples.save_to_disk(str(to / "examples"))
    _clear(to)
    return Examples(examples, "train"), dict(dropped)


def _clean(
    source: Dataset, split: str, recipe: Recipe, task: Task, dropped: Counter[str], to: Path, first: int = 0
) -> Dataset:
    """The rows as the task stores them, with their numbers and digests; those that are dropped are counted."""
    data = recipe.data
    read = read_rows(source, split, recipe, task, to, first)
    dropped["where"] += len(source) - len(read)
    reasons, names = Rows(read).codes(REASON)
    keep = reasons < 0
    dropped.update({name: int((reasons == code).sum()) for code, name in enumerate(names)})
    if data.clean.drop_duplicates and keep.any():
        digests = pd.DataFrame({name: Rows(read).numbers(name) for name in (*IDENTITY, TARGET)})
        is_repeated = digests[keep].duplicated()
        dropped["duplicate"] += int(is_repeated.sum())
        keep[is_repeated.index[is_repeated]] = False
    if data.clean.near_duplicates is not None and keep.any():
        keep = _without_near_duplicates(read, keep, task, data.clean.near_duplicates, dropped)
    if not keep.any():
        counted = str({reason: count for reason, count in dropped.items() if count})
        raise NoRowsLeft(Problem(f"no row of {split} is left after cleaning", path="data.clean", value=counted))
    return read.select(np.flatnonzero(keep)).remove_columns([REASON])


def read_rows(source: Dataset, split: str, recipe: Recipe, task: Task, to: Path, first: int = 0) -> Dataset:
    """The rows that `data.where` keeps, as the task stores them, with ROW (counted from `first`); those it drops are empty
    and have a REASON, the others the digests of their input (IDENTITY) and of what is learned from it (TARGET). Written
    under `to`."""
    with _naming_bad_text(source, split):
        return _read_rows(source, split, recipe, task, to, first)


@contextmanager
def _naming_bad_text(source: Dataset, split: str) -> Iterator[None]:
    """Raises UserError with the row of a text that is not UTF-8, as a binary file may hold it. `datasets` says so by
    UnicodeDecodeError, when it comes to the row."""
    try:
        yield
    except UnicodeDecodeError as error:
        place = _place_of_bad_text(source)
        if place is None:
            raise
        row, column = place
        message = f"{split} row {row}: the column {column!r} holds bytes that are not UTF-8"
        raise UserError(Problem(message, "data.source", value=repr(error.object)[:200])) from None


def _place_of_bad_text(source: Dataset) -> tuple[int, str] | None:
    """Returns (row, column)."""
    for name in source.column_names:
        first = 0
        for batch in source.select_columns([name]).with_format("arrow").iter(BATCH):
            if not _is_valid(batch):
                return first + next(
                    index for index in range(len(batch)) if not _is_valid(batch[index : index + 1])
                ), name
            first += len(batch)
    return None


def _is_valid(table: pa.Table) -> bool:
    try:
        pa.concat_tables([table]).combine_chunks().validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _read_rows(source: Dataset, split: str, recipe: Recipe, task: Task, to: Path, first: int) -> Dataset:
    data = recipe.data
    for role in data.columns:
        require_column(source, data.columns[role], role)
    selected = _select_where(source, split, data)
    reader = _Reader(source, split, recipe, task)
    columns = {*reader.columns.values(), *([data.split.group] if data.split.group else [])}
    if data.split.group:
        require_column(source, data.split.group, "split.group", "data.split.group")
    table = source.select_columns(sorted(columns))
    for name, feature in table.features.items():
        if isinstance(feature, (Image, Audio)):
            table = table.cast_column(name, type(feature)(decode=False))
    if len(selected) < len(source):
        table = table.select(selected)
    table = table.add_column(ROW, first + selected)
    extra = {ROW: Value("int64"), REASON: Value("string"), GROUP: Value("string")} | {
        name: Value("int64") for name in (*IDENTITY, TARGET)
    }
    if not data.split.group:
        extra.pop(GROUP)
    return table.map(
        reader,
        batched=True,
        batch_size=BATCH,
        remove_columns=table.column_names,
        features=Features({**task.row_features, **extra}),
        num_proc=_processes(len(table)),
        load_from_cache_file=False,
        cache_file_name=str(to / f"{split}.reading"),
        new_fingerprint=_key(str(to), split),
    )


def _without_near_duplicates(
    read: Dataset, keep: np.ndarray, task: Task, threshold: float, dropped: Counter[str]
) -> np.ndarray:
    """Keeps the first of each group of near-duplicates."""
    row_indices = np.flatnonzero(keep)
    texts = task.input_texts(Rows(read.select(row_indices)))
    if not texts:
        raise UserError(Problem("works on texts, and this task has none", path="data.clean.near_duplicates"))
    later = [member for group in near_duplicates(texts, threshold) for member in sorted(group)[1:]]
    dropped["near duplicate"] += len(later)
    keep = keep.copy()
    keep[row_indices[later]] = False
    return keep


def read_row(task: Task, values: dict[str, Any], number: int) -> dict[str, Any] | str:
    """Returns what `task.read` does. Raises UserError naming the row, also for values of types that the task did not expect."""
    try:
        return task.read(values, number)
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(Problem(f"row {number}: {type(error).__name__}: {error}", "data.source")) from error


class _Reader:
    """Rows of the source, by column -> rows as the task stores them. Sent to other processes."""

    def __init__(self, source: Dataset, split: str, recipe: Recipe, task: Task) -> None:
        self.split, self.data, self.task = split, recipe.data, task
        self.columns, self.media = columns_of(source, recipe), recipe.task.media
        self.converters = {name: converter_of(source.features[name]) for name in self.columns.values()}
        self.stored = tuple(task.row_features)
        self.learned = [name for name in self.stored if name not in task.input_roles]

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {name: [] for name in (*self.stored, ROW, REASON, *IDENTITY, TARGET)}
        values = {
            role: self._values(role, batch[name], self.converters[name], batch[ROW])
            for role, name in self.columns.items()
        }
        for position, number in enumerate(batch[ROW]):
            row = self._read({role: column[position] for role, column in values.items()}, number)
            if not isinstance(row, str) and self._too_long(row):
                row = "too long"
            if isinstance(row, str):
                self._check(row, number)
                stored: dict[str, Any] = {}
                columns[REASON].append(row)
                digests = (0, 0, 0)
            else:
                stored = row
                columns[REASON].append(None)
                target = [_comparable(row.get(name)) for name in self.learned]
                digests = *_digest(self.task.identity(row)), _digest(json.dumps(target))[0]
            for name in self.stored:
                columns[name].append(stored.get(name))
            columns[ROW].append(number)
            for name, value in zip((*IDENTITY, TARGET), digests, strict=True):
                columns[name].append(value)
        if self.data.split.group:
            with _naming_split(self.split):
                values_of_rows = zip(batch[self.data.split.group], batch[ROW], strict=True)
                columns[GROUP] = [_group_of(value, number) for value, number in values_of_rows]
        return columns

    def _read(self, values: dict[str, Any], number: int) -> dict[str, Any] | str:
        with _naming_split(self.split):
            return read_row(self.task, values, number)

    def _values(
        self, role: str, values: list[Any], convert: Callable[[Any], Any] | None, numbers: list[int]
    ) -> list[Any]:
        if convert is not None:
            values = [convert(value) for value in values]
        if role in self.task.text_roles:
            with _naming_split(self.split):
                return [
                    clean_text(value, self.data.clean, role, number)
                    for value, number in zip(values, numbers, strict=True)
                ]
        if role in self.media:
            with _naming_split(self.split):
                return [_medium(value, role, number) for value, number in zip(values, numbers, strict=True)]
        return values

    def _too_long(self, row: dict[str, Any]) -> bool:
        max_chars = self.data.clean.max_chars
        return max_chars is not None and self.task.num_chars(row) > max_chars

    def _check(self, reason: str, number: int) -> None:
        if reason in EMPTY and not self.data.clean.drop_empty:
            message = f"row {number} of {self.split}: {reason}"
            raise UserError(Problem(message, path="data.clean.drop_empty", value="false"))


def _medium(value: Any, role: str, number: int) -> dict[str, Any] | None:
    """Returns an image or recording as it is stored. Raises UserError naming the row."""
    if value is None or value == {}:
        return None
    if isinstance(value, str):
        return {"path": value, "bytes": None}
    path, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (None, None)
    is_stored = isinstance(value, dict) and bool({"path", "bytes"} & set(value))
    if is_stored and isinstance(path, str | None) and isinstance(content, bytes | None):
        return {"path": path, "bytes": content}
    message = f"row {number}: the name of a file is needed, not {type_name(value)}"
    hint = "write the path of the file, relative to the table, or an object with `path` or `bytes`"
    raise UserError(Problem(message, f"data.columns.{role}", value=repr(value)[:200], hint=hint))


@contextmanager
def _naming_split(split: str) -> Iterator[None]:
    """Puts the split before the row that an error names."""
    try:
        yield
    except UserError as error:
        problems = [replace(problem, message=f"{split} {problem.message}") for problem in error.problems]
        raise UserError(problems) from None


def columns_of(source: Dataset, recipe: Recipe) -> dict[str, str]:
    """Role -> column, of those that the task reads. Raises UserError listing the columns there are."""
    column_by_role = {}
    for role, need in recipe.task.columns.items():
        name = recipe.data.columns.get(role, role)
        if need == "required" or role in recipe.data.columns:
            require_column(source, name, role)
        elif need == "if mapped" or name not in source.column_names:
            continue
        column_by_role[role] = name
    if problem := recipe.task.missing_columns(column_by_role, source.column_names):
        raise UserError(problem)
    return column_by_role


def require_column(source: Dataset, name: str, role: str, path: str = "") -> None:
    if name not in source.column_names:
        valid = tuple(source.column_names)
        if fault := undivided(source.column_names, name):
            hint = "divide the fields by commas in a csv file and by tabs in a tsv file; data.format names the format"
            raise UserError(Problem(f"could not be read: {fault}", "data.source", value=valid[0], hint=hint))
        raise UserError(
            Problem(f"the data has no column {name!r}", path or f"data.columns.{role}", value=name, valid=valid)
        )


def _select_where(source: Dataset, split: str, data: Data) -> np.ndarray:
    """Numbers of the rows that `data.where` keeps. Raises UserError when there is none."""
    keep = np.ones(len(source), dtype=bool)
    for name, value_or_values in data.where.items():
        require_column(source, name, f"where.{name}")
        convert = converter_of(source.features[name]) or (lambda value: value)
        allowed = value_or_values if isinstance(value_or_values, list) else [value_or_values]
        seen_values: Counter[str] = Counter()
        hits = []
        for batch in source.select_columns([name]).iter(batch_size=10 * BATCH):
            values = [convert(value) for value in batch[name]]
            hits += [any(_equals(value, wanted) for wanted in allowed) for value in values]
            if len(seen_values) < 1000:
                seen_values.update(map(repr, values))
        keep &= np.array(hits, dtype=bool)
        if not keep.any():
            valid = tuple(text for text, _ in seen_values.most_common(8))
            raise NoRowsLeft(
                Problem(f"no row of {split} is left", f"data.where.{name}", value=repr(value_or_values), valid=valid)
            )
    return np.flatnonzero(keep)


def _equals(value: Any, wanted: str | float | bool) -> bool:
    """Whether a row has the value that a recipe names. Files of texts have texts for numbers and truth values."""
    if isinstance(value, str) and isinstance(wanted, bool):
        return value.lower() == str(wanted).lower()
    if isinstance(value, str) and not isinstance(wanted, str):
        try:
            return float(value) == wanted
        except ValueError:
            return False
    return bool(value == wanted)


def _group_of(value: Any, row: int) -> str:
    """Returns the name of a row's group; 1 and 1.0 are the same. Raises UserError naming the row."""
    if value is None or value == "" or value != value:
        hint = "give each row a group, or exclude such rows with data.where"
        raise UserError(Problem(f"row {row}: no group", "data.split.group", hint=hint))
    if isinstance(value, (list, dict, bytes)):
        message = f"row {row}: a group is a text or a number, not {type_name(value)}"
        raise UserError(Problem(message, "data.split.group", value=repr(value)[:200]))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def converter_of(feature: Any) -> Callable[[Any], Any] | None:
    """How values of a column become what was written: class numbers their names, and floats of 16 and 32 bits the shortest
    decimal, since 1.1 would otherwise be the text 1.100000023841858. None where they are so already."""
    if isinstance(feature, Value) and feature.dtype in ("float16", "float32"):
        dtype = np.dtype(feature.dtype).type
        return lambda number: None if number is None else float(str(dtype(number)))
    return naming_of(feature)


def naming_of(feature: Any) -> Callable[[Any], Any] | None:
    """Class numbers -> class names, wherever they are in a column's values; None when there are none."""
    if isinstance(feature, ClassLabel):
        return lambda number: None if number is None or number < 0 else feature.int2str(number)
    if isinstance(feature, List) and (inner := naming_of(feature.feature)):
        return lambda values: None if values is None else [inner(value) for value in values]
    if isinstance(feature, dict) and (converters := {key: naming_of(value) for key, value in feature.items()}):
        changed = {key: convert for key, convert in converters.items() if convert}
        if changed:
            return lambda value: value and {**value, **{key: convert(value[key]) for key, convert in changed.items()}}
    return None


# ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _examples(prepared: Prepared) -> dict[str, Examples]:
    data = prepared.task.recipe.data
    settings = json.dumps([data.max_length, data.augment.text is not None])
    folder = prepared.folder / _key(processor_digest(prepared.processor), settings, _libraries())

    def build(to: Path) -> None:
        for split, rows in prepared.splits.items():
            encoded = _encode(rows, split, prepared.task, prepared.processor, to)
            prepared.task.arrange(encoded, split).save_to_disk(str(to / split))
        _clear(to)

    with cached_folder(folder, build) as built_folder:
        return {split: Examples(Dataset.load_from_disk(str(built_folder / split)), split) for split in prepared.splits}


def _encode(rows: Rows, split: str, task: Task, processor: Any, to: Path) -> Dataset:
    encoder = _Encoder(task, processor, split)
    features = Dataset.from_dict(encoder(rows.table[: min(len(rows), 16)])).features
    return rows.table.map(
        encoder,
        batched=True,
        batch_size=BATCH,
        remove_columns=rows.table.column_names,
        features=Features({**features, **(task.encoded_features or {}), ROW: Value("int64")}),
        num_proc=_processes(len(rows)),
        load_from_cache_file=False,
        cache_file_name=str(to / f"{split}.encoding"),
        new_fingerprint=_key(str(to), split),
    )


class _Encoder:
    """Sent to other processes."""

    def __init__(self, task: Task, processor: Any, split: str) -> None:
        self.task, self.processor, self.split = task, processor, split

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**encode(self.task, batch, self.processor, self.split), ROW: batch[ROW]}


# ── the cache ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _clear(folder: Path) -> None:
    """Removes what `map` has written on the way."""
    for scrap in (*folder.glob("*.reading*"), *folder.glob("*.encoding*")):
        scrap.unlink()


def processor_digest(processor: Any) -> str:
    """Hashes the files it saves: the same tokenizer under another name is the same."""
    with tempfile.TemporaryDirectory(prefix="sft-dist-") as folder:
        processor.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return _key(*(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files))


def _libraries() -> str:
    import tokenizers
    import transformers

    return f"{transformers.__version__} {tokenizers.__version__}"


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _comparable(value: Any) -> Any:
    """A stored value as JSON can hold it, an image by what is in its file."""
    return content(value).hex() if isinstance(value, dict) and set(value) == {"path", "bytes"} else value


def _digest(identity: str | bytes) -> tuple[int, int]:
    """128 bits, as two numbers: a billion rows have not even one chance in 10^20 of two taken for one."""
    digest = xxhash.xxh3_128_digest(
        identity if isinstance(identity, bytes) else identity.encode(errors="surrogatepass")
    )
    return int.from_bytes(digest[:8], "big", signed=True), int.from_bytes(digest[8:], "big", signed=True)


def _processes(num_rows: int) -> int | None:
    return None if num_rows < MIN_ROWS_FOR_PROCESSES else max(1, len(os.sched_getaffinity(0)))
