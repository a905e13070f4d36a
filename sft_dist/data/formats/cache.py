"""Where what was read or fetched is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import fsspec

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import cache_root
from sft_dist.recipe.remote import marks


def tables_folder() -> str:
    return str(cache_root() / "datasets")


def fetched(url: str) -> Path | list[Path]:
    """The file, folder (a URL that ends with `/`) or files of a glob behind a URL, copied into the cache once for each
    state they are in. Raises UserError when there is nothing, and OSError or ImportError where the filesystem does."""
    system, path = fsspec.core.url_to_fs(url)
    names = sorted(system.find(path) if url.endswith("/") else system.glob(path))
    if not names:
        raise UserError(Problem("there is no such file, or it cannot be reached", path="data.source", value=url))
    if "file" in system.protocol or "local" in system.protocol:
        return Path(path) if url.endswith("/") else _one_or_all([Path(name) for name in names])
    home = cache_root() / "urls" / hashlib.sha256(f"{url}\n{marks(system, names)}".encode()).hexdigest()[:32]
    root = path.rstrip("/") if url.endswith("/") else os.path.commonpath([os.path.dirname(name) for name in names])
    inside = [os.path.relpath(name, root) for name in names]
    if url.startswith(("https://", "http://")):
        inside = [name.partition("?")[0] for name in inside]
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".fetching-", dir=home.parent))
        try:
            for name, to in zip(names, inside, strict=True):
                (aside / to).parent.mkdir(parents=True, exist_ok=True)
                system.get_file(name, str(aside / to))
            os.rename(aside, home)
        except OSError:
            if not home.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    if url.endswith("/"):
        return home
    return _one_or_all([home / name for name in inside])


def _one_or_all(files: list[Path]) -> Path | list[Path]:
    return files if len(files) > 1 else files[0]
