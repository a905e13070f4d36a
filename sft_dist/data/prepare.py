"""From a recipe to cleaned, labelled, divided and encoded examples, prepared once and kept.

What is prepared lies under the cache's `prepared/`, named after everything it depends on: the data's settings and files,
the processor's own files, this code. The first process that needs it makes it, under a file lock; every later start, rank, point of
a sweep and evaluation maps it into memory. Nothing here needs a GPU or another process.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from datasets import Dataset, Features, Value

from sft_dist.data.cached_folder import cache_key, cached_folder
from sft_dist.data.clean import near_duplicates
from sft_dist.data.encode import encode
from sft_dist.data.map_rows import map_rows, remove_map_files
from sft_dist.data.read_rows import IDENTITY, REASON, TARGET, read_rows
from sft_dist.data.rows import GROUP, ROW, Examples, NoRowsLeft, Rows
from sft_dist.data.sources import load_rows
from sft_dist.data.splits import draw, hold_out
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import cache_root, read_json, write_json
from sft_dist.recipe.fingerprint import data_fingerprint
from sft_dist.recipe.schema import SPLITS, Data, Recipe

if TYPE_CHECKING:
    from sft_dist.tasks.base import Task

DEFAULT_SHARE = 0.1


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
    folder = cache_root() / "prepared" / cache_key(data_fingerprint(recipe))
    with cached_folder(folder / "rows", lambda to: _build_rows(recipe, task, to)) as rows:
        about = read_json(rows / "about.json") or {}
        splits = {split: Rows(Dataset.load_from_disk(str(rows / split))) for split in about["splits"]}
    task.labels = about["labels"]
    return Prepared(task, processor, folder, about["dropped"], splits, about["contents"])


def prepared_examples(recipe: Recipe, task: Task, processor: Any) -> dict[str, Examples]:
    """The encoded splits where this machine has the rows prepared, else none. Raises UserError where a file of the data is gone."""
    rows = cache_root() / "prepared" / cache_key(data_fingerprint(recipe)) / "rows"
    return prepare(recipe, task, processor).examples if rows.is_dir() else {}


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
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
    remove_map_files(to)


def prepare_chunk(
    source: Dataset, first: int, recipe: Recipe, task: Task, processor: Any, to: Path
) -> tuple[Examples, dict[str, int]]:
    """Training rows of a stream, the first of which has this number -> encoded examples, saved as `examples` under `to`, and
    how many rows are dropped for what reason. Duplicates are those within these rows. Raises NoRowsLeft, or UserError."""
    dropped = Counter[str]()
    rows = Rows(_stored(_clean(source, "train", recipe, task, dropped, to, first)))
    examples = task.arrange(_encode(rows, "train", task, processor, to), "train")
    examples.save_to_disk(str(to / "examples"))
    remove_map_files(to)
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


# ── examples ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def _examples(prepared: Prepared) -> dict[str, Examples]:
    data = prepared.task.recipe.data
    settings = json.dumps([data.max_length, data.augment.text is not None])
    folder = prepared.folder / cache_key(processor_digest(prepared.processor), settings, _libraries())

    def build(to: Path) -> None:
        for split, rows in prepared.splits.items():
            encoded = _encode(rows, split, prepared.task, prepared.processor, to)
            prepared.task.arrange(encoded, split).save_to_disk(str(to / split))
        remove_map_files(to)

    with cached_folder(folder, build) as built_folder:
        return {split: Examples(Dataset.load_from_disk(str(built_folder / split)), split) for split in prepared.splits}


def _encode(rows: Rows, split: str, task: Task, processor: Any, to: Path) -> Dataset:
    encoder = _Encoder(task, processor, split)
    features = Dataset.from_dict(encoder(rows.table[: min(len(rows), 16)])).features
    features = Features({**features, **(task.encoded_features or {}), ROW: Value("int64")})
    return map_rows(rows.table, encoder, features, to, f"{split}-encoded")


class _Encoder:
    """Sent to other processes."""

    def __init__(self, task: Task, processor: Any, split: str) -> None:
        self.task, self.processor, self.split = task, processor, split

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**encode(self.task, batch, self.processor, self.split), ROW: batch[ROW]}


def processor_digest(processor: Any) -> str:
    """Hashes the files it saves: the same tokenizer under another name is the same."""
    with tempfile.TemporaryDirectory(prefix="sft-dist-") as folder:
        processor.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return cache_key(
            *(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files)
        )


def _libraries() -> str:
    import tokenizers
    import transformers

    return f"{transformers.__version__} {tokenizers.__version__}"
