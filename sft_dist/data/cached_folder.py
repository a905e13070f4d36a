"""Folders of the cache that one process builds and all others wait for. A folder appears complete or not at all, and one whose
files have lost their sizes since is built again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_dist.recipe.files import read_json, require_safe_owner, write_json
from sft_dist.run.locks import locked

SIZES = "sizes.json"  # of every other file in the folder


@contextmanager
def cached_folder(folder: Path, build: Callable[[Path], None]) -> Iterator[Path]:
    """Yields the folder, filled by `build` unless it exists; other processes that need it wait. Raises UserError where everyone
    may write into another user's folder."""
    if not _is_complete(folder):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not _is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
                staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
                try:
                    build(staging)
                    write_json(staging / SIZES, _sizes(staging))
                    _publish(staging, folder)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
    yield folder


def _is_complete(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    require_safe_owner(folder)
    recorded = read_json(folder / SIZES)
    return isinstance(recorded, dict) and recorded.items() <= _sizes(folder).items()


def _sizes(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def _publish(staging: Path, folder: Path) -> None:
    try:
        os.replace(staging, folder)
    except OSError:
        if not folder.is_dir():  # another process was first, on a file system without locks
            raise
