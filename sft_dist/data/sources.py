"""Reading rows: files, folders, databases, URLs and hub data sets, whatever their format (`sft_dist.data.formats`).

    load_rows    every split, memory-mapped
    stream_rows  one split, row by row, in an order that is the same every time; stream_tables: many at a time

Several sources of one split are put one after the other, or mixed by `data.weights`: each row is drawn from a source with
that probability, no row twice, until the first source is used up. What is left of the others then is not used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    concatenate_datasets,
    interleave_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationCastError
from datasets.utils.logging import disable_progress_bar
from huggingface_hub.constants import HF_HUB_CACHE

from sft_dist.data.formats import FORMATS
from sft_dist.data.formats.cache import fetched, streams_folder, tables_folder
from sft_dist.data.formats.faults import fault_in
from sft_dist.data.formats.layout import SPLIT_NAMES, guessed, is_coco, split_files, split_folders
from sft_dist.data.formats.media import confined, undecoded
from sft_dist.data.formats.sql import read_sql
from sft_dist.data.formats.tables import TABLES, read_labelled
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.references import SUFFIXES, Reference, classify, resolve, sources_of, sqlite_file, suffix_of
from sft_dist.recipe.schema import SPLITS, Data, SplitSources, Streaming

MEDIA_ROLES = ("image", "mask", "audio")  # roles whose values may be names of files
HUB_FILES = (str(datasets.config.HF_DATASETS_CACHE), str(datasets.config.DOWNLOADED_DATASETS_PATH))
STREAMED_URLS = (*TABLES, "conll")  # formats that are read from a URL as they come; the others are fetched first

_Rows = TypeVar("_Rows", Dataset, IterableDataset)


def load_rows(data: Data) -> dict[str, Dataset]:
    """Split name -> rows as they are in the source; always has `train`, unless that is streamed. Raises UserError."""
    disable_progress_bar()
    if data.streaming is not None:
        return _beside_a_stream(data)
    if isinstance(data.source, SplitSources):
        named = {split: getattr(data.source, split) for split in SPLITS}
        return {split: _split_of(source, split, data, False) for split, source in named.items() if source is not None}
    found = _load(data.source, "data.source", data, data.weights, False)
    if "train" not in found:
        raise _lacks("train", found, "data.source")
    return {split: found[split] for split in SPLITS if split in found}


def stream_rows(data: Data, split: str = "train", epoch: int = 0, skip: int = 0) -> IterableDataset:
    """The rows of a split one by one, the training rows shuffled among `data.streaming.buffer`. Raises UserError.

    The order is a function of the source, `data.split.seed` and `epoch`. `skip` leaves out the first rows of that order:
    a run that goes on after `k` rows asks for `skip=k` and gets exactly those that are left. They are read to be skipped,
    for which nothing has to be remembered; the `state_dict` of `datasets` forgets what is in the shuffle buffer.
    """
    disable_progress_bar()
    data = _of_epoch(data, epoch)
    if isinstance(data.source, SplitSources):
        source = getattr(data.source, split)
        if source is None:
            raise UserError(
                Problem(f"streams have only the splits that are named: there is no {split}", f"data.source.{split}")
            )
        rows = _split_of(source, split, data, True)
    else:
        found = _load(data.source, "data.source", data, data.weights, True)
        if split not in found:
            raise _lacks(split, found, "data.source")
        rows = found[split]
    if split == "train":
        rows = rows.shuffle(seed=data.split.seed, buffer_size=_buffer(data))
    return rows.skip(skip) if skip else rows


def stream_tables(data: Data, epoch: int = 0, skip: int = 0) -> Iterator[Dataset]:
    """The training rows as they come, `data.streaming.buffer` at a time. Raises UserError with the place of a fault in a
    file; what else a reader raises, such as of the network, as it is."""
    rows = stream_rows(data, "train", epoch, skip)
    each = iter(rows)
    while True:
        try:
            some = list(islice(each, _buffer(data)))
        except ValueError as error:
            path, fault = _fault_of(data) or ("data.source", _said(error))
            raise UserError(Problem(f"could not be read: {fault}", path)) from error
        if not some:
            return
        yield _table_of(some, rows.features)


def _buffer(data: Data) -> int:
    return (data.streaming or Streaming()).buffer


def _fault_of(data: Data) -> tuple[str, str] | None:
    """(key path, fault) of the first training file that has one."""
    for path, text in sources_of(data):
        reference = classify(text, Path.cwd())
        if path.startswith(("data.source.validation", "data.source.test")) or reference.kind in ("hub", "sql"):
            continue
        where = [text] if reference.kind == "url" else resolve(reference)
        places = where if isinstance(where, list) else [where]
        for file in (str(file) for place in places for file in _files_in(place)):
            name = SUFFIXES.get(suffix_of(file)) if data.format == "auto" else data.format
            if name in TABLES and (fault := fault_in(str(name), [file])):
                return path, fault
    return None


def _files_in(place: str | Path) -> list[str] | list[Path]:
    return sorted(place.rglob("*")) if isinstance(place, Path) and place.is_dir() else [str(place)]


def _table_of(rows: Sequence[dict[str, Any]], features: Features | None) -> Dataset:
    """Some rows of a stream. Readers that do not know the features beforehand may leave out a key in which a row has nothing."""
    names = list(features or {name: None for row in rows for name in row})
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names}, features=features)


def _beside_a_stream(data: Data) -> dict[str, Dataset]:
    """The other splits: whole, and read as streams too, since `datasets` would fetch all of a hub data set for one split."""
    if isinstance(data.source, SplitSources):
        there = {split for split in SPLITS if getattr(data.source, split) is not None}
    else:
        there = set(_load(data.source, "data.source", data, None, True))
    if "validation" not in there:
        raise _lacks("validation", dict.fromkeys(there), "data.source")
    found = {}
    for split in SPLITS[1:]:
        if split in there:
            rows = stream_rows(data, split)
            found[split] = _table_of(list(rows), rows.features)
    return found


def _of_epoch(data: Data, epoch: int) -> Data:
    """The settings with a seed of the epoch's own. (`set_epoch` of `datasets` does not go together with `skip`, which
    keeps the order of files that it has met.)"""
    seed = int(np.random.SeedSequence([data.split.seed, epoch]).generate_state(1)[0])
    return data.model_copy(update={"split": data.split.model_copy(update={"seed": seed})})


# ── several sources ─────────────────────────────────────────────────────────────────────────────────────────────────
def _split_of(source: str | list[str], split: str, data: Data, streaming: bool) -> Any:
    """The rows of a split that the recipe names a source for."""
    path = f"data.source.{split}"
    found = _load(source, path, data, data.weights if split == "train" else None, streaming)
    if split not in found and set(found) != {"train"}:  # a data set with splits of its own, this one not
        raise _lacks(split, found, path)
    return found[split if split in found else "train"]


def _lacks(split: str, found: dict[str, Any], path: str) -> UserError:
    named = "training" if split == "train" else split
    return UserError(Problem(f"has no {named} split", path=path, value=f"splits {', '.join(found)}"))


def _load(
    source: str | list[str], path: str, data: Data, weights: Sequence[float] | None, streaming: bool
) -> dict[str, Any]:
    if isinstance(source, str):
        return _load_one(source, path, data, streaming)
    parts = [_load_one(text, f"{path}.{index}", data, streaming) for index, text in enumerate(source)]
    if len(parts) == 1:
        return parts[0]
    if any(set(part) != {"train"} for part in parts):
        raise UserError(Problem("a list of sources cannot hold data sets with splits of their own", path=path))
    rows = [part["train"] for part in parts]
    try:
        joined = (
            concatenate_datasets(rows) if weights is None else _mixed(rows, weights, data.split.seed, _buffer(data))
        )
        return {"train": joined}
    except ValueError as error:
        raise UserError(Problem(f"the sources cannot be joined: {error}", path=path)) from error


def _mixed(rows: list[_Rows], weights: Sequence[float], seed: int, buffer: int) -> _Rows:
    """Rows drawn from each source with its share, without replacement, until the first source is used up.

    Each source is shuffled before, so that what is left over of it is no part of its own, such as one class.
    """
    if len(weights) != len(rows):
        what = f"expected one weight for each of the {len(rows)} sources"
        raise UserError(Problem(what, "data.weights", value=f"{len(weights)} weights"))
    shares = [weight / sum(weights) for weight in weights]
    shuffled = [
        part.shuffle(seed=seed, buffer_size=buffer) if isinstance(part, IterableDataset) else part.shuffle(seed=seed)
        for part in rows
    ]
    return interleave_datasets(shuffled, probabilities=shares, seed=seed, stopping_strategy="first_exhausted")


# ── one source ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _load_one(text: str, path: str, data: Data, streaming: bool) -> dict[str, Any]:
    """Raises UserError that names the source by its key path."""
    try:
        found = _read(classify(text, Path.cwd()), data, streaming)
        return {split: undecoded(rows) for split, rows in found.items()}
    except UserError as error:
        raise UserError([_placed(one, path, text) for one in error.problems]) from error
    except Exception as error:  # every reader has its own exceptions; the cause is what the user needs
        raise UserError(Problem(f"could not be read: {_said(error)}", path=path, value=text)) from error


def _placed(problem: Problem, path: str, text: str) -> Problem:
    if problem.path not in ("", "data.source"):
        return problem
    fetched_from = text if "://" in text else None  # the file that was read lies in a cache
    return replace(problem, path=path, value=problem.value or fetched_from)


def _said(error: Exception) -> str:
    """The cause in one line, without the list of all files and the advice for authors on the hub."""
    cause = error if isinstance(error, DatasetGenerationCastError) else error.__cause__ or error
    words = str(cause).split("\n\nPlease either edit")[0].split(", [")[0]
    return f"{type(cause).__name__}: {' '.join(words.split())}"


def _read(reference: Reference, data: Data, streaming: bool) -> dict[str, Any]:
    text = reference.text
    name: str = data.format
    if reference.kind == "hub":
        found = load_dataset(text, data.subset, revision=data.revision, streaming=streaming)
        return _named_splits(_confined(dict(found), data, [*HUB_FILES]))
    where = resolve(reference)
    if reference.kind == "sql":
        beside = [os.path.dirname(file)] if (file := sqlite_file(text)) else []
        rows = _confined({"train": read_sql(text)}, data, [*beside, os.getcwd()])["train"]
        return {"train": _as_asked(rows, streaming)}
    if reference.kind == "url":
        if name == "auto" and not text.endswith("/"):
            name = _format_of([text])
        if streaming and name in STREAMED_URLS and not text.endswith("/"):
            rows = FORMATS[name].read([text], True)
            return _confined({"train": rows}, data, [])  # there is no folder that what it names could lie in
        where = fetched(text)
    if isinstance(where, Path) and where.is_dir():
        return _read_folder(where, name, data, streaming)
    files = [str(file) for file in (where if isinstance(where, list) else [where])]
    name = _format_of(files) if name == "auto" else name
    if name == "sql" or not FORMATS[name].suffixes:
        raise UserError(Problem(f"{name} is no format of a file", "data.format", value=name))
    return {"train": _rows_in(name, files, data, streaming)}


def _rows_in(name: str, files: list[str], data: Data, streaming: bool) -> Any:
    """Rows of files or of a folder. Pictures and sounds that a table names lie beside it."""
    if name not in TABLES:
        return FORMATS[name].read(files, streaming)
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(os.path.dirname(os.path.abspath(file)), []).append(file)
    label = data.columns.get("label", "label")
    rows = read_labelled(name, files, streaming, label)
    if len(folders) > 1 and _names_media(rows, data):
        return concatenate_datasets([_rows_in(name, part, data, streaming) for part in folders.values()])
    return _confined({"": rows}, data, [*folders, os.getcwd()])[""]


def _names_media(rows: Any, data: Data) -> bool:
    """Whether these rows have a column of pictures or sounds. A stream need not know its columns: its first row tells."""
    names: Any = rows.features
    if names is None:
        try:
            names = next(iter(rows), {})
        except Exception:  # every reader has its own; said with its place when the stream comes to it
            names = {}
    return any(data.columns.get(role, role) in names for role in MEDIA_ROLES)


def _confined(splits: dict[str, Any], data: Data, folders: Sequence[str]) -> dict[str, Any]:
    """The splits with what names a picture or sound outside these folders marked as refused. Into the hub's cache lead
    the links of a data set that was downloaded from there."""
    columns = [data.columns.get(role, role) for role in MEDIA_ROLES]
    return {split: confined(rows, columns, [*folders, HF_HUB_CACHE], data.allow_urls) for split, rows in splits.items()}


def _format_of(files: Sequence[str]) -> str:
    """The one format of these files or URLs, by their suffixes and by what a JSON file holds. Raises UserError."""
    suffixes = {suffix_of(file) for file in files}
    formats = {SUFFIXES.get(suffix) for suffix in suffixes}
    if len(formats) > 1 or None in formats:
        raise UserError(
            Problem(
                "files of one known format are needed",
                path="data.source",
                value=", ".join(sorted(suffix or "no suffix" for suffix in suffixes)),
                valid=tuple(SUFFIXES),
                hint="data.format names the format of files that are called otherwise",
            )
        )
    (name,) = formats
    return "coco" if name == "json" and all(is_coco(Path(file)) for file in files) else str(name)


def _read_folder(folder: Path, name: str, data: Data, streaming: bool) -> dict[str, Any]:
    kind = guessed(folder) if name == "auto" else name
    if kind == "saved":
        saved = load_from_disk(str(folder))
        found = dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
        if not folder.is_relative_to(streams_folder()):  # the paths of those were seen to when the stream was read
            found = _confined(found, data, [str(folder), os.getcwd()])
        return _named_splits({split: _as_asked(rows, streaming) for split, rows in found.items()})
    if kind == "repository":
        found = load_dataset(str(folder), cache_dir=tables_folder(), streaming=streaming)
        return _named_splits(_confined(found, data, [str(folder), tables_folder(), os.getcwd()]))
    if kind not in FORMATS:
        raise UserError(Problem(f"{kind} is no format of a folder", "data.format", value=kind))
    if suffixes_of := FORMATS[kind].suffixes:
        places = split_files(folder, suffixes_of, is_coco if kind == "coco" else None)
    else:
        places = {split: [str(inner)] for split, inner in split_folders(folder).items()}
    return {split: _rows_in(kind, files, data, streaming) for split, files in places.items()}


def _as_asked(rows: Dataset, streaming: bool) -> Dataset | IterableDataset:
    return rows.to_iterable_dataset() if streaming else rows


def _named_splits(loaded: dict[str, Any]) -> dict[str, Any]:
    """Splits by this program's names; those it does not know keep their own."""
    usual = {name for names in SPLIT_NAMES.values() for name in names}
    found = {name: rows for name, rows in loaded.items() if name not in usual}
    for split, names in SPLIT_NAMES.items():
        name = next((name for name in names if name in loaded), None)
        if name:
            found[split] = loaded[name]
    return found
