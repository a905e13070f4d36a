"""Which files of a run folder are as the run was made: digests that each verb compares.

They tell edits, which would otherwise change a run silently. They do not stop those who may write into the folder: they
could write the digests, too. Run folders of earlier versions have none, and nothing is compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import irregular, read_json, write_text

MANIFEST = "manifest.json"
RECIPE = ("recipe.json", "plugins.json")
SOURCE = "source"
FIXED = (*RECIPE, SOURCE)  # never written again; the plan and the scripts are, at each start
TRAINING = (*FIXED, "plan.json")  # what decides when a run is resumed
SCRIPTS = ("run.sh", "job.sbatch")


def write_manifest(folder: Path, durable: bool = True) -> None:
    """Records the digests of a run folder's files as they are, but for those of FIXED that were recorded before."""
    recorded = _recorded(folder) or {}
    names = [name for name in (*TRAINING, *SCRIPTS) if (folder / name).exists()]
    digests = {name: recorded[name] if name in FIXED and name in recorded else _digest(folder, name) for name in names}
    write_text(folder / MANIFEST, json.dumps(digests, indent=2) + "\n", durable)


def changed_files(folder: Path, names: Collection[str] = (*TRAINING, *SCRIPTS)) -> list[str]:
    """Returns which of these files are not as they were recorded."""
    if not os.path.lexists(folder / MANIFEST):
        return []
    recorded = _recorded(folder)
    if recorded is None:
        return [MANIFEST]
    return [name for name in names if name in recorded and _digest(folder, name) != recorded[name]]


def require_unchanged(folder: Path, names: Sequence[str]) -> None:
    """Raises UserError naming the files that have changed since the run was made."""
    if changed := changed_files(folder, names):
        hint = f"restore it, or start a new run; to accept the change, delete {folder / MANIFEST}"
        raise UserError(Problem(f"{folder}: changed since the run was made: {', '.join(changed)}", hint=hint))


def _recorded(folder: Path) -> dict[str, str] | None:
    value = read_json(folder / MANIFEST)
    return value if isinstance(value, dict) else None


def _digest(folder: Path, name: str) -> str:
    """Returns the SHA-256 of a file, or of all files of the source; an empty text where it cannot be read."""
    if name == SOURCE:
        return source_digest(os.path.realpath(folder / name))
    try:
        return "" if irregular(folder / name) else hashlib.sha256((folder / name).read_bytes()).hexdigest()
    except OSError:
        return ""


@lru_cache(maxsize=1024)  # runs of one recipe share their source
def source_digest(folder: str) -> str:
    """Returns the SHA-256 of the names and contents of the files that Python could import; an empty text where one cannot be
    read. Remembered by this process until `source_digest.cache_clear`."""
    digest = hashlib.sha256()
    try:
        for home, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
            for name in sorted(names):
                file = os.path.join(home, name)
                content = b"" if irregular(file) else Path(file).read_bytes()
                digest.update(f"{os.path.relpath(file, folder)}\0{len(content)}\0".encode() + content)
    except OSError:
        return ""
    return digest.hexdigest()
