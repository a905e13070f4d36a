"""Reading rows: files, folders, databases, URLs and hub data sets, whatever their format (`sft_dist.data.formats`).

    load_rows    every split, memory-mapped
    stream_rows  one split, row by row, in an order that is the same every time; stream_tables: many at a time

`media` are the roles whose values name files in the task that reads the rows: what lies outside the data's folders is refused.

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
    Json,
    Value,
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
from sft_dist.data.formats.confinement import require_confined_card, require_confined_tables
from sft_dist.data.formats.faults import different_columns, fault_in
from sft_dist.data.formats.json_rows import table_of_rows
from sft_dist.data.formats.layout import SPLIT_NAMES, guessed, is_coco, split_files, split_folders
from sft_dist.data.formats.media import confined, undecoded
from sft_dist.data.formats.sql import read_sql
from sft_dist.data.formats.tables import TABLES, read_table
from sft_dist.data.nested import with_nested
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.references import SUFFIXES, Reference, classify, resolve, sources_of, sqlite_file, suffix_of
from sft_dist.recipe.schema import SPLITS, Data, SplitSources, Streaming
from sft_dist.recipe.tasks import TASKS

_JSON_TYPES = {
    "bool",
    "int64",
    "int32",
    "float64",
    "Json",
}  # that JSON holds as they are; `datasets` takes texts for JSON

# Roles whose values name files in any built-in task. They are confined whatever the task, and those of the task itself too.
MEDIA_ROLES = tuple(dict.fromkeys(role for settings in TASKS.values() for role in settings.media))
HUB_FILES = (str(datasets.config.HF_DATASETS_CACHE), str(datasets.config.DOWNLOADED_DATASETS_PATH))
STREAMED_URLS = (*TABLES, "conll")  # formats that are read from a URL as they come; the others are fetched first

_Rows = TypeVar("_Rows", Dataset, IterableDataset)


def load_rows(data: Data, media: Sequence[str] = ()) -> dict[str, Dataset]:
    """Split name -> rows as they are in the source, with the columns inside objects that `data.columns` names; always has
    `train`, unless that is streamed. Raises UserError."""
    disable_progress_bar()
    return {split: with_nested(rows, data.columns.values()) for split, rows in _rows_by_split(data, media).items()}


def _rows_by_split(data: Data, media: Sequence[str]) -> dict[str, Dataset]:
    if data.streaming is not None:
        return _beside_a_stream(data, media)
    if isinstance(data.source, SplitSources):
        named = {split: getattr(data.source, split) for split in SPLITS}
        return {
            split: _split_of(source, split, data, media, False) for split, source in named.items() if source is not None
        }
    rows_by_split = _load(data.source, "data.source", data, media, data.weights, False)
    if "train" not in rows_by_split:
        raise _lacks("train", rows_by_split, "data.source")
    return {split: rows_by_split[split] for split in SPLITS if split in rows_by_split}


def stream_rows(
    data: Data, split: str = "train", epoch: int = 0, skip: int = 0, media: Sequence[str] = ()
) -> IterableDataset:
    """The rows of a split one by one, the training rows shuffled among `data.streaming.buffer`. Raises UserError.

    The order is a function of the source, `data.split.seed` and `epoch`. `skip` skips the first rows of that order:
    a run that resumes after `k` rows asks for `skip=k` and gets exactly those that are left. They are read to be skipped,
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
        rows = _split_of(source, split, data, media, True)
    else:
        rows_by_split = _load(data.source, "data.source", data, media, data.weights, True)
        if split not in rows_by_split:
            raise _lacks(split, rows_by_split, "data.source")
        rows = rows_by_split[split]
    rows = with_nested(rows, data.columns.values())
    if split == "train":
        rows = rows.shuffle(seed=data.split.seed, buffer_size=_buffer(data))
    return rows.skip(skip) if skip else rows


def stream_tables(data: Data, epoch: int = 0, skip: int = 0, media: Sequence[str] = ()) -> Iterator[Dataset]:
    """The training rows as they come, `data.streaming.buffer` at a time. Raises UserError with the place of a fault in a
    file; what else a reader raises, such as of the network, as it is."""
    rows = stream_rows(data, "train", epoch, skip, media)
    iterator = iter(rows)
    while True:
        try:
            batch = list(islice(iterator, _buffer(data)))
        except ValueError as error:
            path, fault = _fault_of(data) or ("data.source", _describe_error(error))
            raise UserError(Problem(f"could not be read: {fault}", path)) from error
        if not batch:
            return
        yield _table_of(batch, rows.features)


def _buffer(data: Data) -> int:
    return (data.streaming or Streaming()).buffer


def _fault_of(data: Data) -> tuple[str, str] | None:
    """(key path, fault) of the first training file that has one."""
    for path, text in sources_of(data):
        reference = classify(text, Path.cwd())
        if path.startswith(("data.source.validation", "data.source.test")) or reference.kind in ("hub", "sql"):
            continue
        resolved = [text] if reference.kind == "url" else resolve(reference)
        paths = resolved if isinstance(resolved, list) else [resolved]
        for file in (str(file) for path_or_url in paths for file in _files_in(path_or_url)):
            name = SUFFIXES.get(suffix_of(file)) if data.format == "auto" else data.format
            if name in TABLES and (fault := fault_in(str(name), [file])):
                return path, fault
    return None


def _files_in(path_or_url: str | Path) -> list[str] | list[Path]:
    return (
        sorted(path_or_url.rglob("*")) if isinstance(path_or_url, Path) and path_or_url.is_dir() else [str(path_or_url)]
    )


def _table_of(rows: Sequence[dict[str, Any]], features: Features | None) -> Dataset:
    """Some rows of a stream. Readers that do not know the features beforehand may omit a key in which a row has nothing."""
    if features is None:
        return table_of_rows(list(rows))
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in features}, features=features)


def _beside_a_stream(data: Data, media: Sequence[str]) -> dict[str, Dataset]:
    """The other splits: whole, and read as streams too, since `datasets` would fetch all of a hub data set for one split."""
    if isinstance(data.source, SplitSources):
        splits = {split for split in SPLITS if getattr(data.source, split) is not None}
    else:
        splits = set(_load(data.source, "data.source", data, media, None, True))
    if "validation" not in splits:
        raise _lacks("validation", dict.fromkeys(splits), "data.source")
    rows_by_split = {}
    for split in SPLITS[1:]:
        if split in splits:
            rows = stream_rows(data, split, media=media)
            rows_by_split[split] = _table_of(list(rows), rows.features)
    return rows_by_split


def _of_epoch(data: Data, epoch: int) -> Data:
    """The settings with a seed of the epoch's own. (`set_epoch` of `datasets` does not go together with `skip`, which
    keeps the order of files that it has met.)"""
    seed = int(np.random.SeedSequence([data.split.seed, epoch]).generate_state(1)[0])
    return data.model_copy(update={"split": data.split.model_copy(update={"seed": seed})})


# ── several sources ─────────────────────────────────────────────────────────────────────────────────────────────────
def _split_of(source: str | list[str], split: str, data: Data, media: Sequence[str], streaming: bool) -> Any:
    """The rows of a split that the recipe names a source for."""
    path = f"data.source.{split}"
    rows_by_split = _load(source, path, data, media, data.weights if split == "train" else None, streaming)
    if split not in rows_by_split and set(rows_by_split) != {
        "train"
    }:  # a data set with splits of its own, this one not
        raise _lacks(split, rows_by_split, path)
    return rows_by_split[split if split in rows_by_split else "train"]


def _lacks(split: str, rows_by_split: dict[str, Any], path: str) -> UserError:
    named = "training" if split == "train" else split
    return UserError(Problem(f"has no {named} split", path=path, value=f"splits {', '.join(rows_by_split)}"))


def _load(
    source: str | list[str],
    path: str,
    data: Data,
    media: Sequence[str],
    weights: Sequence[float] | None,
    streaming: bool,
) -> dict[str, Any]:
    if isinstance(source, str):
        return _load_one(source, path, data, media, streaming)
    all_loaded = [_load_one(text, f"{path}.{index}", data, media, streaming) for index, text in enumerate(source)]
    if len(all_loaded) == 1:
        return all_loaded[0]
    if any(set(loaded) != {"train"} for loaded in all_loaded):
        raise UserError(Problem("a list of sources cannot hold data sets with splits of their own", path=path))
    rows = [loaded["train"] for loaded in all_loaded]
    for text, other in zip(source, rows, strict=True):
        if other.column_names and rows[0].column_names and set(other.column_names) != set(rows[0].column_names):
            columns = different_columns(text, other.column_names, source[0], rows[0].column_names)
            raise UserError(Problem(f"the sources cannot be joined: {columns}", path=path))
    rows = _aligned(rows)
    try:
        joined = (
            concatenate_datasets(rows) if weights is None else _mixed(rows, weights, data.split.seed, _buffer(data))
        )
        return {"train": joined}
    except ValueError as error:
        raise UserError(Problem(f"the sources cannot be joined: {error}", path=path)) from error


def _aligned(rows: list[_Rows]) -> list[_Rows]:
    """The rows with columns that are numbers of several types as JSON: each value stays what its source says."""
    if any(isinstance(source, IterableDataset) for source in rows):
        return rows
    for name in rows[0].column_names or ():
        kinds = [source.features[name] for source in rows]
        dtypes = {kind.dtype if isinstance(kind, Value) else type(kind).__name__ for kind in kinds} - {"null"}
        if len(dtypes) > 1 and dtypes <= _JSON_TYPES:
            rows = [_as_json(source, name) for source in rows]
    return rows


def _as_json(rows: Any, name: str) -> Any:
    if isinstance(rows.features[name], Json):
        return rows
    features = Features({**rows.features, name: Json()})
    return rows.map(lambda value: {name: value}, input_columns=[name], features=features)


def _mixed(rows: list[_Rows], weights: Sequence[float], seed: int, buffer: int) -> _Rows:
    """Rows drawn from each source with its share, without replacement, until the first source is used up.

    Each source is shuffled before, so that what is left over of it is no part of its own, such as one class.
    """
    if len(weights) != len(rows):
        message = f"expected one weight for each of the {len(rows)} sources"
        raise UserError(Problem(message, "data.weights", value=f"{len(weights)} weights"))
    shares = [weight / sum(weights) for weight in weights]
    shuffled = [
        source.shuffle(seed=seed, buffer_size=buffer)
        if isinstance(source, IterableDataset)
        else source.shuffle(seed=seed)
        for source in rows
    ]
    return interleave_datasets(shuffled, probabilities=shares, seed=seed, stopping_strategy="first_exhausted")


# ── one source ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _load_one(text: str, path: str, data: Data, media: Sequence[str], streaming: bool) -> dict[str, Any]:
    """Raises UserError that names the source by its key path."""
    try:
        rows_by_split = _read(classify(text, Path.cwd()), data, media, streaming)
        return {split: undecoded(rows) for split, rows in rows_by_split.items()}
    except UserError as error:
        raise UserError([_placed(problem, path, text) for problem in error.problems]) from error
    except Exception as error:  # every reader has its own exceptions; the cause is what the user needs
        raise UserError(Problem(f"could not be read: {_describe_error(error)}", path=path, value=text)) from error


def _placed(problem: Problem, path: str, text: str) -> Problem:
    if problem.path not in ("", "data.source"):
        return problem
    fetched_from = text if "://" in text else None  # the file that was read lies in a cache
    return replace(problem, path=path, value=problem.value or fetched_from)


def _describe_error(error: Exception) -> str:
    """The cause in one line, without the list of all files and the advice for authors on the hub."""
    cause = error if isinstance(error, DatasetGenerationCastError) else error.__cause__ or error
    words = str(cause).split("\n\nPlease either edit")[0].split(", [")[0]
    return f"{type(cause).__name__}: {' '.join(words.split())}"


def _read(reference: Reference, data: Data, media: Sequence[str], streaming: bool) -> dict[str, Any]:
    text = reference.text
    name: str = data.format
    if reference.kind == "hub":
        rows_by_split = load_dataset(text, data.subset, revision=data.revision, streaming=streaming)
        return _named_splits(_confined(dict(rows_by_split), data, media, [*HUB_FILES]))
    resolved = resolve(reference)
    if reference.kind == "sql":
        beside = [os.path.dirname(file)] if (file := sqlite_file(text)) else []
        rows = _confined({"train": read_sql(text)}, data, media, [*beside, os.getcwd()])["train"]
        return {"train": _as_asked(rows, streaming)}
    if reference.kind == "url":
        if name == "auto" and not text.endswith("/"):
            name = _format_of([text])
        if streaming and name in STREAMED_URLS and not text.endswith("/"):
            rows = FORMATS[name].read([text], True)
            return _confined({"train": rows}, data, media, [])  # there is no folder that what it names could lie in
        resolved = fetched(text)
    if isinstance(resolved, Path) and resolved.is_dir():
        return _read_folder(resolved, name, data, media, streaming)
    files = [str(file) for file in (resolved if isinstance(resolved, list) else [resolved])]
    name = _format_of(files) if name == "auto" else name
    if name == "sql" or not FORMATS[name].suffixes:
        raise UserError(Problem(f"{name} is not a file format", "data.format", value=name))
    return {"train": _rows_in(name, files, data, media, streaming)}


def _rows_in(name: str, files: list[str], data: Data, media: Sequence[str], streaming: bool) -> Any:
    """Rows of files or of a folder. Images and sounds that a table names lie beside it."""
    if name not in TABLES:
        return FORMATS[name].read(files, streaming)
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(os.path.dirname(os.path.abspath(file)), []).append(file)
    rows = read_table(name, files, streaming)
    if len(folders) > 1 and _names_media(rows, data, media):
        return concatenate_datasets([_rows_in(name, group, data, media, streaming) for group in folders.values()])
    return _confined({"": rows}, data, media, [*folders, os.getcwd()])[""]


def _names_media(rows: Any, data: Data, media: Sequence[str]) -> bool:
    """Whether these rows have a column of images or sounds. A stream need not know its columns: its first row tells."""
    names: Any = rows.features
    if names is None:
        try:
            names = next(iter(rows), {})
        except Exception:  # every reader has its own; said with its place when the stream comes to it
            names = {}
    return any(column in names for column in _media_columns(data, media))


def _media_columns(data: Data, media: Sequence[str]) -> list[str]:
    return [data.columns.get(role, role) for role in dict.fromkeys((*MEDIA_ROLES, *media))]


def _confined(splits: dict[str, Any], data: Data, media: Sequence[str], folders: Sequence[str]) -> dict[str, Any]:
    """The splits with what names an image or sound outside these folders marked as refused. Into the hub's cache lead
    the links of a data set that was downloaded from there."""
    columns = _media_columns(data, media)
    return {split: confined(rows, columns, [*folders, HF_HUB_CACHE], data.allow_urls) for split, rows in splits.items()}


def _format_of(files: Sequence[str]) -> str:
    """The one format of these files or URLs, by their suffixes and by what a JSON file holds. Raises UserError."""
    suffixes = {suffix_of(file) for file in files}
    formats = {SUFFIXES.get(suffix) for suffix in suffixes}
    if len(formats) > 1 or None in formats:
        raise UserError(
            Problem(
                "expected files of one supported format",
                path="data.source",
                value=", ".join(sorted(suffix or "no suffix" for suffix in suffixes)),
                valid=tuple(SUFFIXES),
                hint="set data.format for files with other suffixes",
            )
        )
    (name,) = formats
    return "coco" if name == "json" and all(is_coco(Path(file)) for file in files) else str(name)


def _read_folder(folder: Path, name: str, data: Data, media: Sequence[str], streaming: bool) -> dict[str, Any]:
    kind = guessed(folder) if name == "auto" else name
    if kind == "saved":
        require_confined_tables(folder)
        saved = load_from_disk(str(folder))
        rows_by_split = dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
        if not folder.is_relative_to(streams_folder()):  # the paths of those were seen to when the stream was read
            rows_by_split = _confined(rows_by_split, data, media, [str(folder), os.getcwd()])
        return _named_splits({split: _as_asked(rows, streaming) for split, rows in rows_by_split.items()})
    if kind == "repository":
        require_confined_card(folder)
        rows_by_split = load_dataset(str(folder), cache_dir=tables_folder(), streaming=streaming)
        return _named_splits(_confined(rows_by_split, data, media, [str(folder), tables_folder(), os.getcwd()]))
    if kind not in FORMATS:
        raise UserError(Problem(f"{kind} is not a folder format", "data.format", value=kind))
    if suffixes_of := FORMATS[kind].suffixes:
        files_by_split = split_files(folder, suffixes_of, is_coco if kind == "coco" else None)
    else:
        files_by_split = {split: [str(inner)] for split, inner in split_folders(folder).items()}
    return {split: _rows_in(kind, files, data, media, streaming) for split, files in files_by_split.items()}


def _as_asked(rows: Dataset, streaming: bool) -> Dataset | IterableDataset:
    return rows.to_iterable_dataset() if streaming else rows


def _named_splits(loaded: dict[str, Any]) -> dict[str, Any]:
    """Splits by this program's names; those it does not know keep their own."""
    usual = {name for names in SPLIT_NAMES.values() for name in names}
    rows_by_split = {name: rows for name, rows in loaded.items() if name not in usual}
    for split, names in SPLIT_NAMES.items():
        name = next((name for name in names if name in loaded), None)
        if name:
            rows_by_split[split] = loaded[name]
    return rows_by_split
