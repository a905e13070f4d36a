"""The section about a search: its trials as the controller has last recorded them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launch.report.values import list_in, mapping_in, number_in, whole_number_in
from sft_dist.recipe.files import read_object

MAX_TRIALS = 1000
MAX_REASON = 200  # characters
TEXTS = ("name", "metric", "direction", "sampler", "pruning")


def searches_of(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Returns the searches of which a trial is among these runs, each with at most MAX_TRIALS trials."""
    runs_by_parent: dict[Path, set[str]] = {}
    for folder in folders:
        runs_by_parent.setdefault(folder.parent, set()).add(folder.name)
    files = [(file, runs) for parent, runs in runs_by_parent.items() for file in parent.glob(".searches/*/search.json")]
    summaries = [(read_object(file), runs) for file, runs in sorted(files)]
    return [_search(summary) for summary, runs in summaries if runs & {trial.get("run") for trial in _trials(summary)}]


def _trials(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [mapping_in(trial) for trial in list_in(summary.get("trials"))]


def _search(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{key: str(summary.get(key, "")) for key in TEXTS},
        "best": whole_number_in(summary.get("best")),
        "dimensions": [str(path) for path in mapping_in(summary.get("dimensions"))],
        "importance": {
            str(path): share
            for path, value in mapping_in(summary.get("importance")).items()
            if (share := number_in(value)) is not None
        },
        "trials": [_trial(trial) for trial in _trials(summary)[:MAX_TRIALS]],
    }


def _trial(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "number": whole_number_in(trial.get("number")),
        "run": str(trial.get("run", "")),
        "state": str(trial.get("state", "")),
        "point": mapping_in(trial.get("point")),
        "score": number_in(trial.get("score")),
        "reason": str(trial.get("reason", ""))[:MAX_REASON],
    }
