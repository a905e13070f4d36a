"""From a recipe to cleaned, labelled, divided and encoded examples, prepared once and kept.

What is prepared lies under the cache's `prepared/`, named after everything it depends on: the data's settings and files,
the processor's own files, this code. Whoever needs it first makes it, under a file lock; every later start, rank, point of
a sweep and judge maps it into memory. Nothing here needs a GPU or another process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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
import xxhash
from datasets import Audio, ClassLabel, Dataset, Features, Image, List, Value

from sft_dist.data.clean import clean_text, near_duplicates
from sft_dist.data.encode import encode
from sft_dist.data.images import content
from sft_dist.data.rows import ROW, Examples, Rows
from sft_dist.data.sources import load_rows
from sft_dist.data.splits import draw, hold_out
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import cache_root, read_json, write_json
from sft_dist.recipe.fingerprint import data_fingerprint
from sft_dist.recipe.schema import SPLITS, Data, Recipe
from sft_dist.run.locks import locked

if TYPE_CHECKING:
    from sft_dist.tasks.base import Task

DEFAULT_SHARE = 0.1
BATCH = 1000  # rows handled at a time
EMPTY = ("no label", "empty text", "empty conversation", "no answer", "empty answer")  # what `drop_empty` drops
MANY = 50_000  # rows from which on several processes are worth their start
REASON, IDENTITY, TARGET, _GROUP = (
    "dropped for",
    ("input, first half", "input, second half"),
    "what is learned",
    "group",
)


class NoRowsLeft(UserError):
    """Every row was dropped."""


@dataclass(frozen=True)
class Prepared:
    """What a recipe's data come to. Fixes the labels of `task`."""

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
    with built(folder / "rows", lambda to: _build_rows(recipe, task, to)) as rows:
        about = read_json(rows / "about.json") or {}
        splits = {split: Rows(Dataset.load_from_disk(str(rows / split))) for split in about["splits"]}
    task.labels = about["labels"]
    return Prepared(task, processor, folder, about["dropped"], splits, about["contents"])


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _build_rows(recipe: Recipe, task: Task, to: Path) -> None:
    data, dropped = recipe.data, Counter[str]()
    found = {split: _clean(source, split, recipe, task, dropped, to) for split, source in load_rows(data).items()}
    if data.streaming is None:
        found = _divided(found, data, task, dropped)
    for split, table in found.items():
        _stored(table).save_to_disk(str(to / split))
    about = {
        "splits": [split for split in SPLITS if split in found],
        "dropped": dict(dropped),
        "labels": task.labels,
        "contents": {split: _contents(Rows(table)) for split, table in found.items()},
    }
    write_json(to / "about.json", about)


def _stored(table: Dataset) -> Dataset:
    """Without the columns by which rows are told apart and divided."""
    return table.remove_columns([name for name in (*IDENTITY, TARGET, _GROUP) if name in table.column_names])


def _contents(rows: Rows) -> str:
    digests = np.stack([rows.numbers(name) for name in (*IDENTITY, TARGET)])
    return hashlib.sha256(digests.tobytes()).hexdigest()


def _divided(found: dict[str, Dataset], data: Data, task: Task, dropped: Counter[str]) -> dict[str, Dataset]:
    """With the splits that the source does not have, held out of its training rows, from which labels are learned."""
    kept = draw(len(found["train"]), data.limit, data.split.seed)
    if len(kept) < len(found["train"]):
        dropped["limit"] += len(found["train"]) - len(kept)
        found = {**found, "train": found["train"].select(kept)}
    shares = {}
    for split in ("test", "validation"):
        share = getattr(data.split, split)
        if split not in found:
            shares[split] = DEFAULT_SHARE if share is None else share
    whole = Rows(found["train"])
    groups = whole.column(_GROUP) if data.split.group else None
    strata = task.strata(whole) if data.split.stratify and groups is None else None
    if data.clean.drop_duplicates and groups is None:
        first, inputs = _inputs(whole)
        divided = hold_out(len(first), shares, data.split.seed, strata and [strata[i] for i in first])
        parts = {split: np.flatnonzero(np.isin(inputs, numbers)) for split, numbers in divided.items()}
    else:
        parts = hold_out(len(whole), shares, data.split.seed, strata, groups)
    found = {**found, **{split: found["train"].select(indices) for split, indices in parts.items()}}
    if data.split.group:
        _refuse_shared_groups({split: set(Rows(table).codes(_GROUP)[1]) for split, table in found.items()})
    task.learn_labels(Rows(found["train"]))
    return found


def _refuse_shared_groups(groups: dict[str, set[str]]) -> None:
    """Splits that the source has may share groups; those that are made here do not."""
    for one, other in combinations([split for split in SPLITS if split in groups], 2):
        if shared := sorted(groups[one] & groups[other]):
            more = f" and {len(shared) - 10:,} more" if len(shared) > 10 else ""
            what = f"groups that are in {one} and in {other}: {', '.join(shared[:10])}{more}"
            hint = "move each group into one of the splits, or leave data.split.group out"
            raise UserError(Problem(what, "data.split.group", hint=hint))


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
        again = digests[keep].duplicated()
        dropped["duplicate"] += int(again.sum())
        keep[again.index[again]] = False
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
    data = recipe.data
    for role in data.columns:
        require_column(source, data.columns[role], role)
    wanted = _wanted(source, split, data)
    reader = _Reader(source, split, recipe, task)
    columns = {*reader.columns.values(), *([data.split.group] if data.split.group else [])}
    if data.split.group:
        require_column(source, data.split.group, "split.group", "data.split.group")
    table = source.select_columns(sorted(columns))
    for name, feature in table.features.items():
        if isinstance(feature, (Image, Audio)):
            table = table.cast_column(name, type(feature)(decode=False))
    if len(wanted) < len(source):
        table = table.select(wanted)
    table = table.add_column(ROW, first + wanted)
    extra = {ROW: Value("int64"), REASON: Value("string"), _GROUP: Value("string")} | {
        name: Value("int64") for name in (*IDENTITY, TARGET)
    }
    if not data.split.group:
        extra.pop(_GROUP)
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
    """Of each group of rows that are nearly alike, the first stays."""
    there = np.flatnonzero(keep)
    texts = task.input_texts(Rows(read.select(there)))
    if not texts:
        raise UserError(Problem("is for texts, and this task has none", path="data.clean.near_duplicates"))
    later = [member for group in near_duplicates(texts, threshold) for member in sorted(group)[1:]]
    dropped["near duplicate"] += len(later)
    keep = keep.copy()
    keep[there[later]] = False
    return keep


class _Reader:
    """Rows of the source, by column -> rows as the task stores them. Sent to other processes."""

    def __init__(self, source: Dataset, split: str, recipe: Recipe, task: Task) -> None:
        self.split, self.data, self.task = split, recipe.data, task
        self.columns = columns_of(source, recipe)
        self.names = {name: naming_of(source.features[name]) for name in self.columns.values()}
        self.stored = tuple(task.row_features)
        self.learned = [name for name in self.stored if name not in task.input_roles]

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {name: [] for name in (*self.stored, ROW, REASON, *IDENTITY, TARGET)}
        values = {role: self._values(role, batch[name], self.names[name]) for role, name in self.columns.items()}
        for place, number in enumerate(batch[ROW]):
            row = self._read({role: column[place] for role, column in values.items()}, number)
            if not isinstance(row, str) and self._too_long(row):
                row = "too long"
            if isinstance(row, str):
                self._check(row, number)
                stored: dict[str, Any] = {}
                made[REASON].append(row)
                digests = (0, 0, 0)
            else:
                stored = row
                made[REASON].append(None)
                target = [_comparable(row.get(name)) for name in self.learned]
                digests = *_digest(self.task.identity(row)), _digest(json.dumps(target))[0]
            for name in self.stored:
                made[name].append(stored.get(name))
            made[ROW].append(number)
            for name, value in zip((*IDENTITY, TARGET), digests, strict=True):
                made[name].append(value)
        if self.data.split.group:
            made[_GROUP] = [str(value) for value in batch[self.data.split.group]]
        return made

    def _read(self, values: dict[str, Any], number: int) -> dict[str, Any] | str:
        try:
            return self.task.read(values, number)
        except UserError as error:  # names the row
            raise UserError([replace(one, message=f"{self.split} {one.message}") for one in error.problems]) from None

    def _values(self, role: str, values: list[Any], named: Callable[[Any], Any] | None) -> list[Any]:
        if named is not None:
            values = [named(value) for value in values]
        if role in self.task.text_roles:
            return [clean_text(value, self.data.clean) for value in values]
        if role in ("image", "mask", "audio"):
            return [{"path": value, "bytes": None} if isinstance(value, str) else value for value in values]
        return values

    def _too_long(self, row: dict[str, Any]) -> bool:
        most = self.data.clean.max_chars
        return most is not None and self.task.num_chars(row) > most

    def _check(self, reason: str, number: int) -> None:
        if reason in EMPTY and not self.data.clean.drop_empty:
            where = f"row {number} of {self.split}: {reason}"
            raise UserError(Problem(where, path="data.clean.drop_empty", value="false"))


def columns_of(source: Dataset, recipe: Recipe) -> dict[str, str]:
    """Role -> column, of those that the task reads. Raises UserError listing the columns there are."""
    found = {}
    for role, need in recipe.task.columns.items():
        name = recipe.data.columns.get(role, role)
        if need == "required" or role in recipe.data.columns:
            require_column(source, name, role)
        elif need == "if mapped" or name not in source.column_names:
            continue
        found[role] = name
    return found


def require_column(source: Dataset, name: str, role: str, path: str = "") -> None:
    if name not in source.column_names:
        valid = tuple(source.column_names)
        raise UserError(
            Problem(f"the data has no column {name!r}", path or f"data.columns.{role}", value=name, valid=valid)
        )


def _wanted(source: Dataset, split: str, data: Data) -> np.ndarray:
    """Numbers of the rows that `data.where` keeps. Raises UserError when there is none."""
    keep = np.ones(len(source), dtype=bool)
    for name, wanted in data.where.items():
        require_column(source, name, f"where.{name}")
        named = naming_of(source.features[name]) or (lambda value: value)
        allowed = wanted if isinstance(wanted, list) else [wanted]
        there: Counter[str] = Counter()
        hits = []
        for batch in source.select_columns([name]).iter(batch_size=10 * BATCH):
            values = [named(value) for value in batch[name]]
            hits += [value in allowed for value in values]
            if len(there) < 1000:
                there.update(map(repr, values))
        keep &= np.array(hits, dtype=bool)
        if not keep.any():
            valid = tuple(text for text, _ in there.most_common(8))
            raise NoRowsLeft(
                Problem(f"no row of {split} is left", f"data.where.{name}", value=repr(wanted), valid=valid)
            )
    return np.flatnonzero(keep)


def naming_of(feature: Any) -> Callable[[Any], Any] | None:
    """Class numbers -> class names, wherever they are in a column's values; None when there are none."""
    if isinstance(feature, ClassLabel):
        return lambda number: None if number is None or number < 0 else feature.int2str(number)
    if isinstance(feature, List) and (inner := naming_of(feature.feature)):
        return lambda values: None if values is None else [inner(value) for value in values]
    if isinstance(feature, dict) and (parts := {key: naming_of(value) for key, value in feature.items()}):
        changed = {key: part for key, part in parts.items() if part}
        if changed:
            return lambda value: value and {**value, **{key: part(value[key]) for key, part in changed.items()}}
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

    with built(folder, build) as made:
        return {split: Examples(Dataset.load_from_disk(str(made / split)), split) for split in prepared.splits}


def _encode(rows: Rows, split: str, task: Task, processor: Any, to: Path) -> Dataset:
    encoder = _Encoder(task, processor, split)
    some = Dataset.from_dict(encoder(rows.table[: min(len(rows), 16)])).features
    return rows.table.map(
        encoder,
        batched=True,
        batch_size=BATCH,
        remove_columns=rows.table.column_names,
        features=Features({**some, **(task.encoded_features or {}), ROW: Value("int64")}),
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
@contextmanager
def built(folder: Path, build: Callable[[Path], None]) -> Iterator[Path]:
    """The folder, made by `build` unless it is there; others that want it too wait. It appears whole or not at all."""
    if not folder.is_dir():
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
                try:
                    build(aside)
                    _clear(aside)
                    _publish(aside, folder)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    yield folder


def _publish(aside: Path, folder: Path) -> None:
    try:
        os.replace(aside, folder)
    except OSError:
        if not folder.is_dir():  # another process was first, on a file system without locks
            raise


def _clear(folder: Path) -> None:
    """Of what `map` has written on the way."""
    for scrap in (*folder.glob("*.reading*"), *folder.glob("*.encoding*")):
        scrap.unlink()


def processor_digest(processor: Any) -> str:
    """Of the files it saves: the same tokenizer under another name is the same."""
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
    """A stored value as JSON can hold it, a picture by what is in its file."""
    return content(value).hex() if isinstance(value, dict) and set(value) == {"path", "bytes"} else value


def _digest(identity: str | bytes) -> tuple[int, int]:
    """128 bits, as two numbers: a billion rows have not even one chance in 10^20 of two taken for one."""
    found = xxhash.xxh3_128_digest(identity if isinstance(identity, bytes) else identity.encode(errors="surrogatepass"))
    return int.from_bytes(found[:8], "big", signed=True), int.from_bytes(found[8:], "big", signed=True)


def _processes(num_rows: int) -> int | None:
    return None if num_rows < MANY else max(1, len(os.sched_getaffinity(0)))
