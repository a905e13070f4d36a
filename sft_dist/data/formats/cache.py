"""The cache of what was read or fetched."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import fsspec

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import cache_root, irregular
from sft_dist.recipe.remote import marks, require_known_protocol

MAX_FILES = 1_000_000  # behind one URL
MAX_BYTES = 200 * 2**30  # of all of them
_COPY_BYTES = 4 * 2**20  # bytes copied at a time


def tables_folder() -> str:
    return str(cache_root() / "datasets")


def streams_folder() -> Path:
    """Beginnings of streams as `check` has read them."""
    return cache_root() / "streams"


def fetched(url: str) -> Path | list[Path]:
    """The file, folder (a URL that ends with `/`) or files of a glob behind a URL, copied into the cache once for each
    state they are in, and only into it. Raises UserError when there is nothing or too much, and OSError or ImportError
    where the filesystem does."""
    require_known_protocol(url)
    system, path = fsspec.core.url_to_fs(url)
    if url.endswith("/"):  # object stores may list the folder itself
        names = sorted(name for name in system.find(path) if name.rstrip("/") != path.rstrip("/"))
    else:
        names = sorted(system.glob(path))
    if not names:
        raise UserError(Problem("there is no such file, or it cannot be reached", path="data.source", value=url))
    if "file" in system.protocol or "local" in system.protocol:
        if kinds := [f"{name} is {kind}, not a file" for name in names if (kind := irregular(name))]:
            raise UserError(Problem(kinds[0], path="data.source", value=url))
        return Path(path) if url.endswith("/") else _one_or_all([Path(name) for name in names])
    home = cache_root() / "urls" / hashlib.sha256(f"{url}\n{marks(system, names)}".encode()).hexdigest()[:32]
    root = path.rstrip("/") if url.endswith("/") else os.path.commonpath([os.path.dirname(name) for name in names])
    inside = [os.path.relpath(name, root) for name in names]
    if url.startswith(("https://", "http://")):
        inside = [name.partition("?")[0] for name in inside]
    if outside := [
        name for name in inside if name.startswith("/") or not set(name.split("/")).isdisjoint(("", ".", ".."))
    ]:
        raise _refused(url, f"one of its names leads out of the folder it is copied into: {outside[0]}")
    if len(names) > MAX_FILES:
        raise _refused(url, f"{len(names):,} files are more than the {MAX_FILES:,} that are fetched")
    if not home.exists():
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".fetching-", dir=home.parent))
        try:
            room = MAX_BYTES
            for name, to in zip(names, inside, strict=True):
                (staging / to).parent.mkdir(parents=True, exist_ok=True)
                room -= _copied(system, name, staging / to, room, url)
            os.rename(staging, home)
        except OSError:
            if not home.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    if url.endswith("/"):
        return home
    return _one_or_all([home / name for name in inside])


def _copied(system: Any, name: str, to: Path, room: int, url: str) -> int:
    """Bytes of the file, of which there may be `room`. What a server says of a size need not be true, so it is counted."""
    count = 0
    with system.open(name, "rb") as source, to.open("xb") as target:
        while data := source.read(_COPY_BYTES):
            count += len(data)
            if count > room:
                raise _refused(url, f"it holds more than the {MAX_BYTES:,} bytes that are fetched")
            target.write(data)
    return count


def _refused(url: str, message: str) -> UserError:
    hint = "inspect and download it yourself, and name the file or folder"
    return UserError(Problem(message, path="data.source", value=url, hint=hint))


def _one_or_all(files: list[Path]) -> Path | list[Path]:
    return files if len(files) > 1 else files[0]
