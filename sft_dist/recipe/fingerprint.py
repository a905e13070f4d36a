"""Digests that are the keys of caches: what decides about prepared rows and about the results of the data check."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from sft_dist import __version__
from sft_dist.recipe import remote
from sft_dist.recipe.entry_points import TASKS_GROUP, Plugin, plugin_of
from sft_dist.recipe.references import SCHEME, Reference, classify, resolve, sources_of, sqlite_file
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks import TASKS

PACKAGE = Path(__file__).resolve().parents[1]
# The code that decides about cached rows and targets. A test holds it against what `data` and `tasks` import.
ROW_CODE = (
    "data",
    "tasks",
    "recipe/references.py",
    "recipe/schema.py",
    "recipe/tasks",
    "losses/targets.py",
    "metrics/transcripts.py",
)
_LOCAL_FILESYSTEMS = ("file", "local", "memory")  # asking them for the state of a file costs nothing


def data_fingerprint(recipe: Recipe, replan: bool = False) -> str:
    """Returns the SHA-256 of all that decides which rows a run has.

    That is the code that prepares them, the data settings, the task, each local file's size and time of change, and the state of
    remote data as far as it is known (`sft_dist.recipe.remote`). Planning sets `replan`: databases then count as changed.
    Raises UserError when a file is missing.
    """
    settings = recipe.data.model_dump(mode="json", exclude={"max_length"})
    files: list[tuple[str, int, int] | tuple[str, str]] = []
    for _, text in sources_of(recipe.data):
        reference = classify(text, Path.cwd())
        for path in _files_of(reference, resolve(reference)):
            status = path.stat()
            files.append((str(path), status.st_size, status.st_mtime_ns))
        if state := _remote_state(reference, recipe.data.revision, replan):
            files.append((text, state))
    facts = {
        "version": __version__,
        "code": code_digest(*ROW_CODE),
        "data": settings,
        "task": recipe.task.model_dump(mode="json"),
        "files": files,
    }
    if recipe.task.type not in TASKS:
        plugin = plugin_of(TASKS_GROUP, recipe.task.type)
        work = recipe.task.work.partition(":")[0]
        facts["plugin"] = [plugin.distribution, plugin.version, plugin_digest(plugin, work)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def model_state(recipe: Recipe) -> list[tuple[str, int, int]]:
    """Returns the state of the local files of a recipe's model, tokenizer and chat template, by which rows become examples."""
    texts = [recipe.model.path, recipe.model.tokenizer, *recipe.task.files().values()]
    references = [classify(text, Path.cwd()) for text in texts if text is not None]
    return file_states(str(path) for reference in references for path in _files_of(reference, resolve(reference)))


def file_states(paths: Iterable[str]) -> list[tuple[str, int, int]]:
    """Returns (path, size, time of change) of each file; -1 for both when it does not exist."""
    states = []
    for path in paths:
        try:
            status = os.stat(path)
            states.append((path, status.st_size, status.st_mtime_ns))
        except OSError:
            states.append((path, -1, -1))
    return states


def plugin_digest(plugin: Plugin, *modules: str) -> str:
    """Returns the SHA-256 of the top-level packages of a plugin and of these modules: of the files that are imported, so that it
    sees edits of an editable install."""
    digest = hashlib.sha256()
    modules = (plugin.module, *modules)
    for name in sorted({module.partition(".")[0] for module in modules}):
        spec = find_spec(name)
        if spec is None:
            continue  # a class of work that does not exist fails where it is imported, and is named there
        folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
        digests = [code_digest(package=folder) for folder in folders if folder.is_dir()]
        if not folders and spec.origin:
            digests = [code_digest(Path(spec.origin).name, package=Path(spec.origin).parent)]
        digest.update("".join([name, *digests]).encode())
    return digest.hexdigest()


@lru_cache
def code_digest(*names: str, package: Path | None = None) -> str:
    """Returns the SHA-256 of these modules and packages of sft_dist (all of it without a name), by path and content."""
    package = package or PACKAGE
    paths = [package / name for name in names] or [package]
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _remote_state(reference: Reference, revision: str | None, replan: bool) -> str:
    """Returns what changes with data that is not in local files; empty where that is not known."""
    text = reference.text
    if reference.kind == "hub":
        return remote.state_of_hub(text, revision)
    if reference.kind == "sql":
        return "" if sqlite_file(text) else remote.state_of_server(text, replan)
    if reference.kind != "url":
        return ""
    if SCHEME.match(text)[1].lower() not in _LOCAL_FILESYSTEMS:  # type: ignore[index]
        return remote.state_of_url(text)
    import fsspec  # only recipes with such a URL need it

    try:
        filesystem, path = fsspec.core.url_to_fs(text)
        files = sorted(filesystem.find(path)) or sorted(filesystem.glob(path))
        return " ".join(str(filesystem.ukey(file)) for file in files)
    except (OSError, ValueError):
        return ""


def _files_of(reference: Reference, resolved: Path | list[Path] | str) -> list[Path]:
    if isinstance(resolved, str):
        return []
    if isinstance(resolved, list):
        return resolved
    if reference.kind == "sql":  # SQLite may keep the latest changes beside the file
        return [path for path in (resolved, Path(f"{resolved}-wal")) if path.exists()]
    if resolved.is_dir():
        return sorted(Path(folder) / name for folder, _, names in os.walk(resolved) for name in names)
    return [resolved]
