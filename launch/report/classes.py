"""What the best checkpoint of a classification does well and badly, from its leaderboard and its file of errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.report.values import list_in, mapping_in, number_in
from sft_dist.recipe.files import read_json
from sft_dist.run.candidates import members_in
from sft_dist.run.folder import RunFolder

ERROR_LISTS = ("worst", "most_uncertain")
MAX_ERRORS, MAX_CHARS = 20, 200


def class_report(winner: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Returns `calibration`, `per_class` and `errors`, each empty where nothing is recorded."""
    return {
        "calibration": _calibration(winner.get("calibration")),
        "per_class": _per_class(winner.get("per_class")),
        "errors": _errors(folder, winner),
    }


def _calibration(report: Any) -> dict[str, Any]:
    splits = _mappings(report)
    if not splits:
        return {}
    return {
        "scores": {split: _numbers(scores) for split, scores in splits.items()},
        "bins": {split: _bins(scores.get("bins")) for split, scores in splits.items()},
        "temperature": number_in(report.get("temperature")),
    }


def _bins(bins: Any) -> list[dict[str, float]]:
    """Leaderboards of earlier versions have none."""
    complete = [_numbers(entry) for entry in _mapping_list(bins)]
    return [entry for entry in complete if {"examples", "confidence", "accuracy"} <= entry.keys()]


def _per_class(report: Any) -> dict[str, list[dict[str, Any]]]:
    """Split -> scores of each class. A list, because JavaScript moves keys that look like numbers to the front."""
    return {
        split: [{"label": label[:MAX_CHARS], **_numbers(scores)} for label, scores in _mappings(classes).items()]
        for split, classes in _mappings(report).items()
    }


def _errors(folder: RunFolder, winner: Mapping[str, Any]) -> dict[str, Any]:
    """Those on test, or on validation where the checkpoint was not scored on test."""
    step, members = winner.get("step"), members_in(winner)
    if not isinstance(step, int):
        return {}
    for split in ("test", "validation"):
        content = read_json(folder.errors_file(step, split, members))
        lists = {name: _error_list(content.get(name)) for name in ERROR_LISTS} if isinstance(content, dict) else {}
        if any(lists.values()):
            return {"split": split, **lists}
    return {}


def _error_list(errors: Any) -> list[dict[str, Any]]:
    return [_error(entry) for entry in _mapping_list(errors)[:MAX_ERRORS]]


def _error(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Images and recordings have no text, only the number of their row."""
    return {
        "row": number_in(entry.get("row")),
        "label": str(entry.get("label"))[:MAX_CHARS],
        "predicted": str(entry.get("predicted"))[:MAX_CHARS],
        "probability": number_in(entry.get("probability")),
        "text": None if entry.get("text") is None else str(entry["text"])[:MAX_CHARS],
    }


def _mappings(value: Any) -> dict[str, dict[str, Any]]:
    return {name: entry for name, entry in mapping_in(value).items() if isinstance(entry, dict)}


def _mapping_list(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in list_in(value) if isinstance(entry, dict)]


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if number_in(value) is not None}
