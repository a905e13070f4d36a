"""Number of examples in a recipe's data: counted once by `sft_dist.count`, then read from a cache.

Counting reads and cleans the data with the code that trains, so it costs seconds; the cache's key is a fingerprint of
the data settings and of the files' sizes and times.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import cache_root, read_json, write_json
from sft_dist.recipe.fingerprint import data_fingerprint
from sft_dist.recipe.schema import Recipe
from sft_dist.run.subprocesses import environment, module_command

NOTE_AFTER_S = 2.0


@dataclass(frozen=True)
class RowCounts:
    """Examples in each split after cleaning, or why that is unknown."""

    splits: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def train(self) -> int | None:
        return self.splits.get("train")


def count_rows(recipe: Recipe, python: str = sys.executable) -> RowCounts:
    """Returns the counts, from the cache or by a subprocess. Raises UserError when the data is invalid."""
    file = cache_root() / "rows" / f"{_key(recipe)}.json"
    counts = read_json(file)
    if not isinstance(counts, dict) or not isinstance(counts.get("splits"), dict):
        counts = _count(recipe, python)
        if "unknown" in counts:
            return RowCounts(unknown=str(counts["unknown"]))
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(file, counts)
        except OSError:
            pass  # without a cache it only takes longer
    return RowCounts(
        dict(counts["splits"]), dict(counts.get("dropped") or {}), tuple(map(str, counts.get("labels") or ()))
    )


def _key(recipe: Recipe) -> str:
    """Counting also checks the columns that divide scores, so that what was counted for others has not."""
    slices = hashlib.sha256(json.dumps(recipe.evaluate.slices).encode()).hexdigest()[:10]
    return data_fingerprint(recipe, replan=True) + (f"-{slices}" if recipe.evaluate.slices else "")


def _count(recipe: Recipe, python: str) -> dict[str, Any]:
    """Returns the output of `sft_dist.count`, or {"unknown": reason} when it failed and the recipe is not the reason."""
    with tempfile.TemporaryDirectory(prefix="sft-dist-") as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(recipe.model_dump_json(), encoding="utf-8")
        with subprocess.Popen(
            module_command("sft_dist.count", [file], python),
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
        return {"unknown": "counting printed no result"}
    if process.returncode == 2:
        raise _user_error_in(out) or UserError(err.strip() or "the data could not be read")
    lines = err.strip().splitlines()
    return {"unknown": lines[-1] if lines else f"counting ended with exit code {process.returncode}"}


def _user_error_in(out: str) -> UserError | None:
    """Returns the mistakes in the last line of an output; None where it has none."""
    try:
        return UserError.from_dict(json.loads(out.strip().splitlines()[-1]))
    except (LookupError, ValueError, TypeError):
        return None


def _wait(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Returns both outputs; reports on stderr when counting takes long."""
    try:
        return process.communicate(timeout=NOTE_AFTER_S)
    except subprocess.TimeoutExpired:
        started = time.monotonic()
        print("counting the examples (cached for this data) ...", file=sys.stderr, flush=True)
        try:
            out = process.communicate()
        except BaseException:
            process.kill()
            raise
        print(f"counted in {time.monotonic() - started + NOTE_AFTER_S:.0f} s", file=sys.stderr)
        return out
