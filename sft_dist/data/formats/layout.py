"""What lies in a folder: which format it is, and which of its files or folders belong to which split."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sft_dist.data.formats.faults import unreadable
from sft_dist.recipe.files import irregular
from sft_dist.recipe.references import SUFFIXES, suffix_of

# Names under which a split is found, the most usual first.
SPLIT_NAMES = {
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
    "train": ("train", "training"),
}
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".au")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_COCO_KEYS = [re.compile(rb'"%s"\s*:\s*\[\s*[{\]]' % key) for key in (b"images", b"annotations", b"categories")]
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}


def split_named(name: str) -> str | None:
    """`train` of `train`, `train.conll` and `train-00001.csv`; `validation` of `dev.csv`; None of `trains.csv`."""
    for word in re.split(r"[^a-z]+", name.lower()):
        if word in _SPLIT_OF:
            return _SPLIT_OF[word]
    return None


def guessed(folder: Path) -> str:
    """The format of a folder, by what lies in it: one of FORMATS, `saved` (by `datasets`), or `repository`: a data set as it
    is on the hub, whose card says how it is read, or whose files are of several formats."""
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        return "saved"
    files = list(walked(folder))
    suffixes = {suffix_of(file) for file in files}
    if ".xml" in suffixes:
        return "voc"
    if any((home / "masks").is_dir() and (home / "images").is_dir() for home in (folder, *_folders(folder))):
        return "mask-folder"
    if suffixes & set(IMAGES):
        return "coco" if any(is_coco(Path(file)) for file in files if file.endswith(".json")) else "image-folder"
    if suffixes & set(SOUNDS):
        return "audio-folder"
    formats = {SUFFIXES[suffix] for suffix in suffixes if suffix in SUFFIXES}
    if not formats:
        suffix_list = ", ".join(sorted(filter(None, suffixes))) or "no file"
        raise unreadable(f"no file in {folder} has a supported format", suffix_list)
    if len(formats) > 1:
        formats.discard("text")  # a licence, a note
    card = folder / "README.md"
    described = card.is_file() and b"\nconfigs:" in card.read_bytes()
    return formats.pop() if len(formats) == 1 and not described else "repository"


def split_folders(folder: Path) -> dict[str, Path]:
    """Split -> subfolder where every subfolder is named like a split; else the folder itself as `train`."""
    inner = _folders(folder)
    named = {entry: _SPLIT_OF.get(entry.name.lower()) for entry in inner}
    splits = [split for split in named.values() if split]
    if splits and len(set(splits)) == len(inner):
        return {split: entry for entry, split in named.items() if split}
    if len(splits) > 1:  # one alone may well be a class that is called `train`
        _refuse_undecided(folder, [entry.name for entry in inner])
    return {"train": folder}


def split_files(
    folder: Path, suffixes: tuple[str, ...], sought: Callable[[Path], bool] | None = None
) -> dict[str, list[str]]:
    """Split -> files of these suffixes, by the names of files and folders; all are `train` where no name says a split.
    Where some files are what is `sought`, the others are passed over."""
    files = [file for file in walked(folder) if suffix_of(file) in suffixes]
    if kinds := [f"{file} is {kind}, not a file" for file in files if (kind := irregular(file))]:
        raise unreadable(kinds[0])
    if not files:
        raise unreadable(f"no file in {folder} ends with {' or '.join(suffixes)}")
    if sought is not None:
        files = [file for file in files if sought(Path(file))] or files
    divided: dict[str, list[str]] = {}
    for file in files:
        divided.setdefault(split_named(os.path.relpath(file, folder)) or "", []).append(file)
    if "" not in divided:
        return divided
    if len(divided) > 1:
        _refuse_undecided(folder, [os.path.relpath(file, folder) for file in files])
    return {"train": files}


def _refuse_undecided(folder: Path, names: list[str]) -> None:
    """Raises UserError: some of the names say a split and others none. To take all for training rows would train on the
    test rows."""
    lone = next((name for name in names if split_named(name) is None), names[-1])
    hint = "name the sources of the splits: data.source: {train: ..., validation: ..., test: ...}"
    raise unreadable(f"in {folder}: cannot tell which split {lone} belongs to", ", ".join(names[:8]), hint=hint)


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith((".", "__"))]


def walked(folder: Path) -> Iterator[str]:
    """Every file below, in order; hidden ones and what systems leave behind (`__MACOSX`) are passed over."""
    for home, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (os.path.join(home, name) for name in sorted(names) if not name.startswith("."))


def refuse_archives(folder: Path) -> None:
    """Raises UserError for a packed file beside images or recordings: whether what is in it counts, nothing tells."""
    if archive := next((file for file in walked(folder) if os.path.splitext(file)[1].lower() in ARCHIVES), None):
        raise unreadable(f"{archive} is an archive", hint="unpack it in its place, or move it out of the folder")


def is_coco(file: Path) -> bool:
    """Does this look like COCO annotations: one object with lists of images, annotations and categories?"""
    if file.suffix.lower() != ".json" or not file.is_file() or file.stat().st_size == 0:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[:64].lstrip()[:1] == b"{" and all(key.search(content) for key in _COCO_KEYS)
