"""Folders of the cache that one process builds and all others wait for. A folder appears complete or not at all, and one whose
files have changed since is built again."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from sft_dist.recipe.files import digest_of, read_json, require_safe_owner, write_json
from sft_dist.run.locks import locked

DIGESTS = "digests.json"  # of every other file in the folder

log = logging.getLogger("sft_dist")
_verified: dict[Path, dict[str, tuple[int, ...]]] = {}  # folder -> states of its files when this process compared them


def cache_key(*parts: str) -> str:
    """Returns a name for what depends on these texts and nothing else."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


@contextmanager
def cached_folder(folder: Path, build: Callable[[Path], None]) -> Iterator[Path]:
    """Yields the folder, filled by `build` unless it exists; other processes that need it wait. Raises UserError where everyone
    may write into another user's folder."""
    if _damage(folder) is not None:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if (damage := _damage(folder)) is not None:
                if damage:
                    log.warning("%s is damaged (%s); it is made again", folder, damage)
                shutil.rmtree(folder, ignore_errors=True)
                staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
                try:
                    build(staging)
                    write_json(staging / DIGESTS, {name: _digest(staging / name) for name in _states(staging)})
                    _publish(staging, folder)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
    yield folder


def _damage(folder: Path) -> str | None:
    """Returns what is wrong with a folder, an empty text where there is none, and None where it is as it was built. Files are
    compared by their digests, once for each state that this process meets them in."""
    if not folder.is_dir():
        return ""
    require_safe_owner(folder)
    recorded, states = read_json(folder / DIGESTS), _states(folder)
    if not isinstance(recorded, dict):
        return f"there is no {DIGESTS}"
    if _verified.get(folder) == states:
        return None
    for name, digest in recorded.items():
        if name not in states:
            return f"{name} is missing"
        if _digest(folder / name) != digest:
            return f"{name} has changed"
    _verified[folder] = states
    return None


def _states(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns what changes with each file but DIGESTS."""
    files = {str(file.relative_to(folder)): file.stat() for file in folder.rglob("*") if file.is_file()}
    return {
        name: (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for name, status in sorted(files.items())
        if name != DIGESTS
    }


def _digest(file: Path) -> str:
    """Returns a digest that tells accidents, not attackers: it is as fast as memory."""
    with file.open("rb") as stream:
        return str(digest_of(stream, xxhash.xxh3_128()).hexdigest())


def _publish(staging: Path, folder: Path) -> None:
    try:
        os.replace(staging, folder)
    except OSError:
        if not folder.is_dir():  # another process was first, on a file system without locks
            raise
