"""What a folder of data names for `datasets` to read lies inside the folder: the files of a card's configurations, and those of a
saved table. `datasets` would follow `..`, absolute paths and URLs, with the user's tokens."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.constants import HF_HUB_CACHE

from sft_dist.data.formats.faults import unreadable
from sft_dist.data.formats.layout import walked
from sft_dist.data.media import is_inside, is_url
from sft_dist.recipe.files import irregular, read_json

_CARD_BYTES = 2**20
_HEADER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)


def require_confined_card(folder: Path) -> None:
    """Raises UserError where the card of a data set, or a symbolic link in it, leads out of its folder."""
    card = folder / "README.md"
    if card.is_file():
        with card.open(encoding="utf-8", errors="replace") as stream:
            header = _HEADER.match(stream.read(_CARD_BYTES))
        try:
            settings = yaml.safe_load(header[1]) if header else None
        except yaml.YAMLError:  # `datasets` says what is wrong with it
            settings = None
        _require_inside(folder, _file_patterns(settings), card)
    for file in walked(folder):
        homes = (os.path.realpath(folder), os.path.realpath(HF_HUB_CACHE))
        if irregular(file) or not any(is_inside(os.path.realpath(file), home) for home in homes):
            raise unreadable(f"{file} leads out of the folder of the data set, or is no file")


def require_confined_tables(folder: Path) -> None:
    """Raises UserError where the record of a saved data set names a file, or a split, outside its folder."""
    splits = (read_json(folder / "dataset_dict.json") or {}).get("splits", [])
    _require_inside(folder, [str(split) for split in splits], folder / "dataset_dict.json")
    for home in (folder, *(folder / str(split) for split in splits)):
        files = (read_json(home / "state.json") or {}).get("_data_files") or []
        _require_inside(home, [str(file["filename"]) for file in files], home / "state.json")


def _require_inside(folder: Path, names: list[str], file: Path) -> None:
    for name in names:
        if is_url(name) or not is_inside(os.path.join(folder, name), str(folder)):
            raise unreadable(f"{file} names {name}, which is not in its folder")
        if kind := irregular(folder / name):
            raise unreadable(f"{file} names {name}, which is {kind}")


def _file_patterns(settings: Any) -> list[str]:
    """Returns the patterns of files and folders in the configurations of a card."""
    configs = settings.get("configs") if isinstance(settings, dict) else None
    keys = ("data_files", "data_dir")
    entries = [config.get(key) for config in configs or () if isinstance(config, dict) for key in keys]
    return list(_texts(entries, set()))


def _texts(value: Any, visited: set[int]) -> Iterator[str]:
    """Yields each text in a value once: aliases in YAML can repeat a list a billion times."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list) and id(value) not in visited:
        visited.add(id(value))
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry, visited)
