"""Folders of pictures and recordings. Their columns name files and are never decoded here (see `sft_dist.data.media`).

Pictures are read by `datasets`. Its reader of sound folders cannot work without torchcodec and FFmpeg, even when nothing is
decoded, so the same two layouts are read here: a subfolder for each class, or a table `metadata` with a column `file_name`.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, Features, Image, IterableDataset, Value, load_dataset

from sft_dist.data.formats.cache import tables_folder
from sft_dist.data.formats.faults import no_rows, unreadable
from sft_dist.data.formats.layout import IMAGES, SOUNDS, split_folders, walked
from sft_dist.data.formats.tables import read_table
from sft_dist.recipe.references import SUFFIXES, suffix_of

PICTURE = Image(decode=False)
SOUND = Audio(decode=False)
_STORED = {"bytes": Value("binary"), "path": Value("string")}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def media_rows(columns: dict[str, list[Any]], features: dict[str, Any], streaming: bool) -> Dataset | IterableDataset:
    """Rows whose pictures and sounds are given by the names of their files.

    They are built as what they are stored as: `datasets` encodes sound with torchcodec, though there is nothing to encode.
    """
    media = {name: feature for name, feature in features.items() if isinstance(feature, (Image, Audio))}
    for name in media:
        columns = {**columns, name: [{"bytes": None, "path": str(file)} for file in columns[name]]}
    stored = Features({name: _STORED if name in media else feature for name, feature in features.items()})
    rows = Dataset.from_dict(columns, features=stored)
    for name, feature in media.items():
        rows = rows.cast_column(name, feature)
    return rows.to_iterable_dataset() if streaming else rows


def holds_names(rows: Any, column: str) -> bool:
    """Whether a column is there and holds texts. A stream that does not know its columns has its first row looked at."""
    if rows.features is None:
        try:
            first: dict[str, Any] = next(iter(rows), {})
            return isinstance(first.get(column), str)
        except Exception:  # every reader has its own; said with its place when the stream comes to it
            return False
    return column in rows.features and getattr(rows.features[column], "dtype", "") in ("string", "large_string")


def beside(rows: Any, columns: list[str], folder: str) -> Any:
    """The rows of a table with the relative paths in these columns made absolute: of files in the table's folder, else of
    files in the working directory. Runs read elsewhere than where they were planned. What is neither stays as it is."""

    def placed(values: list[Any]) -> list[Any]:
        return [_placed(value, folder) for value in values]

    if isinstance(rows, IterableDataset):
        return rows.map(
            lambda batch: {name: placed(batch[name]) for name in columns}, batched=True, features=rows.features
        )
    for name in columns:
        made = placed(rows[name][:])
        feature, order = rows.features[name], rows.column_names
        rows = rows.remove_columns([name]).add_column(name, made, feature=feature).select_columns(order)
    return rows


def _placed(value: Any, folder: str) -> Any:
    if not isinstance(value, str) or not value or os.path.isabs(value):
        return value
    return next((path for base in (folder, os.getcwd()) if os.path.isfile(path := os.path.join(base, value))), value)


def read_images(folders: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Columns `image`, and `label` (the subfolder) or those of `metadata`.

    `datasets` is told the files, not the folder: else it takes a class that is called `train` for the training split and
    leaves the other classes out.
    """
    (folder,) = folders
    if not any(suffix_of(file) in IMAGES for file in walked(Path(folder))):
        raise no_rows(folders)
    rows = load_dataset(
        "imagefolder",
        data_files=[f"{glob.escape(folder)}/**"],
        split="train",
        cache_dir=tables_folder(),
        streaming=streaming,
    )
    return undecoded(rows)


def undecoded(rows: Any) -> Any:
    """The rows with pictures and sounds as {"path", "bytes"}."""
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, (Image, Audio)) and feature.decode:
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def read_sounds(folders: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Columns `audio`, and `label` (the subfolder) or those of `metadata`."""
    folder = Path(folders[0])
    files = [Path(file) for file in walked(folder) if suffix_of(file) in SOUNDS]
    if not files:
        raise no_rows(folders)
    tables = [folder / name for name in _METADATA if (folder / name).is_file()]
    if tables:
        return _described(tables[0], streaming)
    labels = [file.relative_to(folder).parts[0] for file in files]
    if all(file.parent == folder for file in files):
        return media_rows({"audio": files}, {"audio": SOUND}, streaming)
    if lost := [file for file in files if file.parent == folder]:
        what = f"{lost[0]} lies beside the folders of the classes, so it has no class"
        raise unreadable(what, hint="move it into one of them")
    return media_rows({"audio": files, "label": labels}, {"audio": SOUND, "label": Value("string")}, streaming)


def _described(table: Path, streaming: bool) -> Dataset | IterableDataset:
    rows = read_table(SUFFIXES[table.suffix], [str(table)], streaming=False)
    if "file_name" not in rows.column_names:
        raise unreadable(f"{table} has no column file_name", ", ".join(rows.column_names), ("file_name",))
    files = [table.parent / str(name) for name in rows["file_name"][:]]
    for number, file in enumerate(files):
        if not file.is_file():
            raise unreadable(f"{table}, row {number}: there is no file {file}")
    others = [name for name in rows.column_names if name not in ("file_name", "audio")]
    columns = {"audio": files, **{name: rows[name][:] for name in others}}
    return media_rows(columns, {"audio": SOUND, **{name: rows.features[name] for name in others}}, streaming)


def read_masks(folders: list[str], streaming: bool) -> Dataset | IterableDataset:
    """`images/` and `masks/` with files of the same names but for their suffixes. Columns `image` and `mask`."""
    folder = Path(folders[0])
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
            found = f"folders {', '.join(there)}" if there else "no folder"
            raise unreadable(f"there is no folder {folder / part}", found, ("images", "masks"))
    if "train" in split_folders(folder / "images") and len(split_folders(folder / "images")) > 1:
        hint = "move them: train/images, train/masks and so on"
        raise unreadable(f"the splits lie inside {folder / 'images'}", hint=hint)
    images, masks = (_by_stem(folder / part) for part in ("images", "masks"))
    _refuse_lone(images, masks, folder / "masks")
    _refuse_lone(masks, images, folder / "images")
    if not images:
        raise no_rows(folders)
    stems = sorted(images)
    columns = {"image": [images[stem] for stem in stems], "mask": [masks[stem] for stem in stems]}
    return media_rows(columns, {"image": PICTURE, "mask": PICTURE}, streaming)


def _refuse_lone(here: dict[str, str], there: dict[str, str], other: Path) -> None:
    if lone := sorted(here.keys() - there.keys()):
        more = f" (nor have {len(lone) - 1} others)" if len(lone) > 1 else ""
        raise unreadable(f"{here[lone[0]]} has no counterpart {other / lone[0]}.*{more}")


def _by_stem(folder: Path) -> dict[str, str]:
    """Path below the folder without its suffix -> picture."""
    found: dict[str, str] = {}
    for file in walked(folder):
        if suffix_of(file) in IMAGES:
            stem = os.path.splitext(os.path.relpath(file, folder))[0]
            if stem in found:
                raise unreadable(f"{found[stem]} and {file} have the same name but for the suffix")
            found[stem] = file
    return found
