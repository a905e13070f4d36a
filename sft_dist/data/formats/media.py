"""Folders of images and recordings. Their columns name files and are never decoded here (see `sft_dist.data.media`).

Images are read by `datasets`. Its reader of sound folders cannot work without torchcodec and FFmpeg, even when nothing is
decoded, so the same two layouts are read here: a subfolder for each class, or a table `metadata` with a column `file_name`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Dataset, Features, Image, IterableDataset, Json, LargeList, List, Value, load_dataset

from sft_dist.data.formats.cache import tables_folder
from sft_dist.data.formats.faults import no_rows, unreadable
from sft_dist.data.formats.layout import IMAGES, SOUNDS, refuse_archives, split_folders, walked
from sft_dist.data.formats.tables import read_table
from sft_dist.data.media import accepted, is_inside, posix_path
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.references import SUFFIXES, suffix_of

UNDECODED_IMAGE = Image(decode=False)
UNDECODED_AUDIO = Audio(decode=False)
_STORED = {"bytes": Value("binary"), "path": Value("string")}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def media_rows(columns: dict[str, list[Any]], features: dict[str, Any], streaming: bool) -> Dataset | IterableDataset:
    """Rows whose images and sounds are given by the names of their files.

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


def confined(rows: Any, columns: list[str], folders: Sequence[str], allow_urls: bool) -> Any:
    """The rows of a source with the paths in these columns as `sft_dist.data.media.accepted` gives them: what names a file
    in one of the folders is made absolute, since runs read elsewhere than where they were planned. Columns that are not
    there, or hold neither texts nor {"path", "bytes"}, are passed over."""

    def placed(value: Any) -> Any:
        if isinstance(value, dict) and value.get("bytes") is None and isinstance(value.get("path"), str):
            return {**value, "path": placed(value["path"])}
        return accepted(value, folders, allow_urls) if isinstance(value, str) and value else value

    rows = undecoded(rows)
    if isinstance(rows, IterableDataset):
        # Where the columns are not known beforehand, each row tells.
        names = columns if rows.features is None else [name for name in columns if name in rows.features]
        if not names:
            return rows
        return rows.map(lambda row: {name: placed(row[name]) for name in names if name in row}, features=rows.features)
    for name in columns:
        if name in rows.column_names and _holds_paths(rows, name):
            values, feature, order = [placed(value) for value in rows[name][:]], rows.features[name], rows.column_names
            stored = _STORED if isinstance(feature, (Image, Audio)) else feature  # as in `media_rows`
            rows = rows.remove_columns([name]).add_column(name, values, feature=Features({name: stored})[name])
            rows = (rows.cast_column(name, feature) if stored is _STORED else rows).select_columns(order)
    return rows


def _holds_paths(rows: Dataset, name: str) -> bool:
    """Texts, or files some of which are not in the table with all their bytes."""
    kind = rows.data.schema.field(name).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return True
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return False
    if kind.get_field_index("bytes") < 0:
        return True
    column = rows.data.column(name)
    return bool(
        pc.any(
            pc.and_(pc.is_null(pc.struct_field(column, "bytes")), pc.is_valid(pc.struct_field(column, "path")))
        ).as_py()
    )


def read_images(folders: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Columns `image`, and `label` (the subfolder) or those of `metadata`.

    `datasets` receives the files, not the folder: else it takes a class that is called `train` for the training split and
    skips the other classes.
    """
    (folder,) = folders
    files = [Path(file) for file in walked(Path(folder)) if suffix_of(file) in IMAGES]
    if not files:
        raise no_rows(folders)
    refuse_archives(Path(folder))
    if not any(Path(file).name in _METADATA for file in walked(Path(folder))):
        _refuse_uncertain_classes(Path(folder), files)
    rows = load_dataset(
        "imagefolder",
        data_files=[f"{glob.escape(folder)}/**"],
        split="train",
        cache_dir=tables_folder(),
        streaming=streaming,
    )
    return undecoded(rows)


def _refuse_uncertain_classes(folder: Path, files: list[Path]) -> None:
    """Raises UserError where some images are in no subfolder, or where two levels of folders could be the classes."""
    below = [file.relative_to(folder).parts[:-1] for file in files]
    if len(set(map(bool, below))) > 1:
        raise _without_class(next(file for file in files if file.parent == folder))
    outer, inner = ({parts[level] for parts in below if parts} for level in (0, -1))
    if len(outer) > 1 and len(inner) > 1 and any(len(parts) > 1 for parts in below):
        file = next(file for file, parts in zip(files, below, strict=True) if len(parts) > 1)
        hint = "move the images into one folder for each class"
        raise unreadable(f"{file}: either of its folders could be its class", hint=hint)


def _without_class(file: Path) -> UserError:
    message = f"{file} lies beside the folders of the classes, so it has no class"
    return unreadable(message, hint="move it into one of them")


def undecoded(rows: Any) -> Any:
    """The rows with images, sounds and other media as {"path", "bytes"}, wherever they are in a column: `datasets` would
    open whatever their paths name, with the user's tokens."""
    for name, feature in (rows.features or {}).items():
        if (stored := _undecoded(feature)) is not feature:
            rows = rows.cast_column(name, stored)
    return rows


def as_stored(rows: Dataset) -> Dataset:
    """The rows with images and sounds as plain structs, which `datasets` does not open."""
    for name, feature in rows.features.items():
        if isinstance(feature, (Image, Audio)):
            rows = rows.cast_column(name, _STORED)
    return rows


def _undecoded(feature: Any) -> Any:
    """The feature itself when there is nothing in it to decode but JSON, which names no files."""
    if isinstance(feature, Json):
        return feature
    if getattr(feature, "decode", False) is True and hasattr(feature, "decode_example"):
        return replace(feature, decode=False)
    if isinstance(feature, dict):
        inner = {name: _undecoded(inner_feature) for name, inner_feature in feature.items()}
        return feature if all(inner[name] is inner_feature for name, inner_feature in feature.items()) else inner
    if isinstance(feature, (list, tuple)):
        (inner_feature,) = feature
        return feature if (part_stored := _undecoded(inner_feature)) is inner_feature else [part_stored]
    if isinstance(feature, (List, LargeList)):
        inner_feature = _undecoded(feature.feature)
        return feature if inner_feature is feature.feature else replace(feature, feature=inner_feature)
    return feature


def read_sounds(folders: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Columns `audio`, and `label` (the subfolder) or those of `metadata`."""
    folder = Path(folders[0])
    files = [Path(file) for file in walked(folder) if suffix_of(file) in SOUNDS]
    if not files:
        raise no_rows(folders)
    refuse_archives(folder)
    tables = [folder / name for name in _METADATA if (folder / name).is_file()]
    if tables:
        return _described(tables[0], streaming)
    labels = [file.relative_to(folder).parts[0] for file in files]
    if all(file.parent == folder for file in files):
        return media_rows({"audio": files}, {"audio": UNDECODED_AUDIO}, streaming)
    if lost := [file for file in files if file.parent == folder]:
        raise _without_class(lost[0])
    return media_rows(
        {"audio": files, "label": labels}, {"audio": UNDECODED_AUDIO, "label": Value("string")}, streaming
    )


def _described(table: Path, streaming: bool) -> Dataset | IterableDataset:
    rows = read_table(SUFFIXES[table.suffix], [str(table)], streaming=False)
    if "file_name" not in rows.column_names:
        raise unreadable(f"{table} has no column file_name", ", ".join(rows.column_names), ("file_name",))
    files = [table.parent / posix_path(str(name), table.parent) for name in rows["file_name"][:]]
    for number, file in enumerate(files):
        if not is_inside(str(file), str(table.parent)):
            raise unreadable(f"{table}, row {number}: {file} is not in the folder of the table or below")
        if not file.is_file():
            raise unreadable(f"{table}, row {number}: there is no file {file}")
    columns_kept = [name for name in rows.column_names if name not in ("file_name", "audio")]
    columns = {"audio": files, **{name: rows[name][:] for name in columns_kept}}
    return media_rows(
        columns, {"audio": UNDECODED_AUDIO, **{name: rows.features[name] for name in columns_kept}}, streaming
    )


def read_masks(folders: list[str], streaming: bool) -> Dataset | IterableDataset:
    """`images/` and `masks/` with files of the same names but for their suffixes. Columns `image` and `mask`."""
    folder = Path(folders[0])
    for name in ("images", "masks"):
        if not (folder / name).is_dir():
            folders_found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
            value = f"folders {', '.join(folders_found)}" if folders_found else "no folder"
            raise unreadable(f"there is no folder {folder / name}", value, ("images", "masks"))
    if "train" in split_folders(folder / "images") and len(split_folders(folder / "images")) > 1:
        hint = "move them: train/images, train/masks and so on"
        raise unreadable(f"the splits lie inside {folder / 'images'}", hint=hint)
    refuse_archives(folder)
    images, masks = (_by_stem(folder / name) for name in ("images", "masks"))
    _refuse_lone(images, masks, folder / "masks")
    _refuse_lone(masks, images, folder / "images")
    if not images:
        raise no_rows(folders)
    stems = sorted(images)
    columns = {"image": [images[stem] for stem in stems], "mask": [masks[stem] for stem in stems]}
    return media_rows(columns, {"image": UNDECODED_IMAGE, "mask": UNDECODED_IMAGE}, streaming)


def _refuse_lone(files: dict[str, str], counterparts: dict[str, str], folder: Path) -> None:
    if lone := sorted(files.keys() - counterparts.keys()):
        remainder = f" (nor have {len(lone) - 1} others)" if len(lone) > 1 else ""
        raise unreadable(f"{files[lone[0]]} has no counterpart {folder / lone[0]}.*{remainder}")


def _by_stem(folder: Path) -> dict[str, str]:
    """Path below the folder without its suffix -> image."""
    by_stem: dict[str, str] = {}
    for file in walked(folder):
        if suffix_of(file) in IMAGES:
            stem = os.path.splitext(os.path.relpath(file, folder))[0]
            if stem in by_stem:
                raise unreadable(f"{by_stem[stem]} and {file} have the same name but for the suffix")
            by_stem[stem] = file
    return by_stem
