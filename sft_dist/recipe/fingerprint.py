"""Digests of what decides about prepared data and check results: settings, files, the state of remote data, code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from sft_dist import __version__
from sft_dist.recipe import remote
from sft_dist.recipe.references import SCHEME, Reference, classify, resolve, sources_of, sqlite_file
from sft_dist.recipe.schema import Recipe

_HERE = ("file", "local", "memory")  # filesystems whose state costs nothing to ask for


def data_fingerprint(recipe: Recipe, anew: bool = False) -> str:
    """SHA-256 of all that decides which rows a run has: the code that prepares them, the data settings, the task, each
    local file's size and time of change, and the state of what lies elsewhere, as far as it is known
    (`sft_dist.recipe.remote`). `anew` is for who plans a run: what a database server holds is then taken for changed.
    Raises UserError when a file is missing."""
    settings = recipe.data.model_dump(mode="json", exclude={"max_length"})
    files: list[tuple[str, int, int] | tuple[str, str]] = []
    for _, text in sources_of(recipe.data):
        reference = classify(text, Path.cwd())
        for path in _files_of(reference, resolve(reference)):
            status = path.stat()
            files.append((str(path), status.st_size, status.st_mtime_ns))
        if state := _state_of(reference, recipe.data.revision, anew):
            files.append((text, state))
    known = {
        "version": __version__,
        "code": code_digest("data", "tasks", "recipe", "losses/tokens.py", "metrics/audio.py"),
        "data": settings,
        "task": recipe.task.model_dump(mode="json"),
        "files": files,
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def model_state(recipe: Recipe) -> list[tuple[str, int, int]]:
    """Of all local files that decide how a recipe's rows become examples: its model's, tokenizer's and chat template."""
    named = [recipe.model.path, recipe.model.tokenizer, getattr(recipe.task, "chat_template", None)]
    places = [classify(text, Path.cwd()) for text in named if text is not None]
    return file_states(str(path) for place in places for path in _files_of(place, resolve(place)))


def file_states(paths: Iterable[str]) -> list[tuple[str, int, int]]:
    """(path, size, time of change) of each; -1 of one that is not there."""
    states = []
    for path in paths:
        try:
            status = os.stat(path)
            states.append((path, status.st_size, status.st_mtime_ns))
        except OSError:
            states.append((path, -1, -1))
    return states


@lru_cache
def code_digest(*names: str) -> str:
    """Of these modules and packages of this program, all without a name: another version of them may do otherwise."""
    package = Path(__file__).resolve().parents[1]
    places = [package / name for name in names] or [package]
    files = sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _state_of(reference: Reference, revision: str | None, anew: bool) -> str:
    """What tells one state of data that are no local files from another; empty where that is not known."""
    text = reference.text
    if reference.kind == "hub":
        return remote.state_of_hub(text, revision)
    if reference.kind == "sql":
        return "" if sqlite_file(text) else remote.state_of_server(text, anew)
    if reference.kind != "url":
        return ""
    if SCHEME.match(text)[1].lower() not in _HERE:  # type: ignore[index]
        return remote.state_of_url(text)
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(text)
        found = sorted(system.find(path)) or sorted(system.glob(path))
        return " ".join(str(system.ukey(one)) for one in found)
    except (OSError, ValueError):
        return ""


def _files_of(reference: Reference, found: Path | list[Path] | str) -> list[Path]:
    if isinstance(found, str):
        return []
    if isinstance(found, list):
        return found
    if reference.kind == "sql":  # SQLite may keep the latest changes beside the file
        return [path for path in (found, Path(f"{found}-wal")) if path.exists()]
    if found.is_dir():
        return sorted(Path(folder) / name for folder, _, names in os.walk(found) for name in names)
    return [found]
