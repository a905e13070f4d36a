"""Folders of the cache that one process builds and all others wait for. A folder appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_dist.run.locks import locked


@contextmanager
def cached_folder(folder: Path, build: Callable[[Path], None]) -> Iterator[Path]:
    """Yields the folder, filled by `build` unless it exists; other processes that need it wait."""
    if not folder.is_dir():
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
                try:
                    build(staging)
                    _publish(staging, folder)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
    yield folder


def _publish(staging: Path, folder: Path) -> None:
    try:
        os.replace(staging, folder)
    except OSError:
        if not folder.is_dir():  # another process was first, on a file system without locks
            raise
