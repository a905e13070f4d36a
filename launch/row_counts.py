"""How many examples a recipe's data has: counted once by `sft_dist.count`, then read from a cache.

Counting reads and cleans the data with the code that trains, so it costs seconds; the cache's key is a fingerprint of
the data settings and of the files' sizes and times.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.subprocesses import environment
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import cache_root, read_json, write_json
from sft_dist.recipe.fingerprint import data_fingerprint
from sft_dist.recipe.schema import Recipe

NOTE_AFTER_S = 2.0


@dataclass(frozen=True)
class Rows:
    """Examples in each split after cleaning, or why that is not known."""

    splits: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def train(self) -> int | None:
        return self.splits.get("train")


def rows_of(recipe: Recipe, python: str = sys.executable) -> Rows:
    """From the cache, else counted in a process of its own. Raises UserError when the data itself is at fault."""
    kept = cache_root() / "rows" / f"{data_fingerprint(recipe, anew=True)}.json"
    known = read_json(kept)
    if known is None:
        known = _count(recipe, python)
        if "unknown" in known:
            return Rows(unknown=str(known["unknown"]))
        try:
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(kept, known)
        except OSError:
            pass  # A cache that cannot be written only costs time.
    return Rows(dict(known["splits"]), dict(known.get("dropped") or {}), tuple(map(str, known.get("labels") or ())))


def _count(recipe: Recipe, python: str) -> dict[str, Any]:
    """`sft_dist.count`'s answer, or {"unknown": reason} when it failed through no fault of the recipe."""
    with tempfile.TemporaryDirectory(prefix="sft-dist-") as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(recipe.model_dump_json(), encoding="utf-8")
        with subprocess.Popen(
            [python, "-m", "sft_dist.count", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        ) as process:
            out, err = _wait(process)
    if process.returncode == 0:
        try:
            answer = json.loads(out.strip().splitlines()[-1])
            if isinstance(answer, dict) and isinstance(answer.get("splits"), dict):
                return answer
        except (IndexError, ValueError):
            pass
        return {"unknown": "the count printed no numbers"}
    if process.returncode == 2:
        raise UserError(err.strip() or "the data could not be read")
    lines = err.strip().splitlines()
    return {"unknown": lines[-1] if lines else f"the count ended with exit code {process.returncode}"}


def _wait(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Both outputs; says on stderr what is going on once it takes long."""
    try:
        return process.communicate(timeout=NOTE_AFTER_S)
    except subprocess.TimeoutExpired:
        started = time.monotonic()
        print("counting the examples (done once for this data) ...", file=sys.stderr, flush=True)
        try:
            out = process.communicate()
        except BaseException:
            process.kill()
            raise
        print(f"counted in {time.monotonic() - started + NOTE_AFTER_S:.0f} s", file=sys.stderr)
        return out
