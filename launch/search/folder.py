"""Where a search lies: beside its runs, `runs/NAME/.searches/ID`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sft_dist.recipe.source import Source

SUMMARY = "search.json"  # the trials, for programs that do without Optuna
MAY_CHANGE = ("budget", "parallel")  # of a search that has begun


def search_folder(source: Source, runs: Path) -> Path:
    """Returns the folder of a search, named by all that makes points and scores what they are: a larger budget continues a study."""
    data: dict[str, Any] = {key: value for key, value in source.data.items() if key not in ("name", "description")}
    data["search"] = {key: value for key, value in data["search"].items() if key not in MAY_CHANGE}
    digest = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
    return runs / ".searches" / digest[:10]
