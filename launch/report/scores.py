"""Leaderboards of runs: those beside the runs and those above them as one table for each metric that selects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.report.classes import class_report
from launch.report.slices import slices_in
from launch.report.values import is_number, list_in, mapping_in
from sft_dist.recipe.files import read_json
from sft_dist.run.candidates import candidate_name, members_in
from sft_dist.run.folder import RunFolder

Board = dict[str, Any]  # what leaderboard.json holds
FINAL_SPLITS = ("test", "train")
COMPARISONS = ("not_distinguishable", "p_value")  # of a checkpoint with the winner of its leaderboard


@dataclass(frozen=True)
class Evaluation:
    """A leaderboard, as far as its runs are in the report. Runs are called by their numbers there."""

    board: Board
    rows: list[dict[str, Any]]
    final: dict[str, Any] | None  # scores of the winner; None if its run is not in the report


def read_leaderboards(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns a table for each metric by which these runs were evaluated, the better checkpoint first."""
    numbers = {(folder.parent.name, folder.name): number for number, folder in enumerate(folders)}
    evaluations: dict[tuple[str, str], list[Evaluation]] = {}
    for folder, board in _boards(folders):
        rows = [entry for entry in (_row(row, folder, numbers) for row in board["rows"]) if entry]
        if rows:
            key = str(board.get("metric")), str(board.get("direction"))
            evaluations.setdefault(key, []).append(Evaluation(board, rows, _final(board, folder, numbers)))
    return [_table(*key, entries, folders) for key, entries in evaluations.items()]


def _boards(folders: Sequence[Path]) -> Iterable[tuple[Path, Board]]:
    """(recipe's folder, leaderboard): those of all runs of a recipe first, because they compare the most."""
    parents = dict.fromkeys(folder.parent for folder in folders)
    owners = [(parent, parent) for parent in parents] + [(folder.parent, folder) for folder in folders]
    for parent, owner in owners:
        board = read_json(owner / "leaderboard.json")
        if isinstance(board, dict) and isinstance(board.get("rows"), list) and isinstance(board.get("winner"), dict):
            yield parent, board


def _table(metric: str, direction: str, evaluations: Sequence[Evaluation], folders: Sequence[Path]) -> dict[str, Any]:
    """One table of several leaderboards. What compares with a winner holds only where that winner is the best of all."""
    entries: dict[tuple[int, int, str], tuple[dict[str, Any], Evaluation]] = {}
    for evaluation in evaluations:
        for row in evaluation.rows:
            entries.setdefault(_checkpoint(row), (row, evaluation))
    sign = -1.0 if direction == "max" else 1.0
    ordered = sorted(entries.values(), key=lambda entry: _sort_key(entry[0], metric, sign))
    best = _checkpoint(ordered[0][0])
    decisive = next((entry for entry in evaluations if entry.final and _checkpoint(entry.final) == best), None)
    board = decisive.board if decisive else {}
    rows = [row if evaluation is decisive else _without_comparisons(row) for row, evaluation in ordered]
    return {
        "metric": metric,
        "direction": direction,
        "directions": mapping_in(evaluations[0].board.get("directions")),
        "smallest_difference": scalars(board.get("smallest_difference")),
        "selection_note": str(board.get("selection_note") or ""),
        "test_note": str(board.get("test_note") or ""),
        "rows": rows,
        "final": _with_class_report(decisive, folders) if decisive else None,
        "notes": list(dict.fromkeys([*_winner_notes(board), *_damage(evaluations)])),
    }


def _with_class_report(evaluation: Evaluation, folders: Sequence[Path]) -> dict[str, Any] | None:
    """Of the best checkpoint alone: those of a hundred runs would exceed the limit of the page."""
    final = evaluation.final
    if not final:
        return None
    winner = evaluation.board["winner"]
    return {**final, **class_report(winner, RunFolder(folders[final["run"]])), "slices": slices_in(winner)}


def _checkpoint(entry: Mapping[str, Any]) -> tuple[int, int, str]:
    return entry["run"], entry["step"], entry.get("mean", "")


def _without_comparisons(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in COMPARISONS}


def _sort_key(row: Mapping[str, Any], metric: str, sign: float) -> tuple[float, float, int]:
    """The order of leaderboards."""
    return _sort_value(row["scores"].get(metric), sign), _sort_value(row["scores"].get("loss"), 1.0), row["step"]


def _sort_value(score: float | None, sign: float) -> float:
    return sign * score if score is not None and math.isfinite(score) else math.inf


def _row(row: Any, parent: Path, numbers: Mapping[tuple[str, str], int]) -> dict[str, Any] | None:
    """A checkpoint; None if its run is not in the report."""
    checkpoint = _numbered(row, parent, numbers)
    if checkpoint is None:
        return None
    entry = {**checkpoint, "scores": scalars(row.get("validation"))}
    if intervals := _intervals(row.get("intervals")):
        entry["intervals"] = intervals
    if is_number(row.get("p_value")):
        entry["p_value"] = row["p_value"]
    if isinstance(row.get("not_distinguishable"), bool):
        entry["not_distinguishable"] = row["not_distinguishable"]
    return entry


def _final(board: Board, parent: Path, numbers: Mapping[tuple[str, str], int]) -> dict[str, Any] | None:
    """The winner's scores on validation and on the splits that were scored once."""
    winner = board["winner"]
    checkpoint = _numbered(winner, parent, numbers)
    if checkpoint is None:
        return None
    splits = {split: winner[split] for split in ("validation", *FINAL_SPLITS) if isinstance(winner.get(split), dict)}
    intervals = mapping_in(winner.get("intervals"))
    return {
        **checkpoint,
        "labels": [str(label) for label in list_in(board.get("labels"))],
        "scores": {split: scalars(scores) for split, scores in splits.items()},
        "intervals": {split: _intervals(of_split) for split, of_split in intervals.items()},
        "confusion": {split: matrix for split, scores in splits.items() if (matrix := _matrix(scores))},
        "against_base": _against_base(mapping_in(board.get("against_base"))),
    }


def _against_base(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The winner beside its base model, on their own task and on general ones; empty where they were not compared."""
    numbers = ("winner", "base", "p_worse", "p_better", "smallest_difference")
    rows = [
        {
            "score": str(row.get("score")),
            "result": str(row.get("result")),
            **{name: row[name] for name in numbers if is_number(row.get(name))},
            **({"interval": row["interval"]} if _is_interval(row.get("interval")) else {}),
        }
        for row in map(mapping_in, list_in(comparison.get("rows")))
        if row
    ]
    return {"rows": rows, "note": str(comparison.get("note") or "")} if rows else {}


def _numbered(entry: Any, parent: Path, numbers: Mapping[tuple[str, str], int]) -> dict[str, Any] | None:
    """The run's number in the report, the step and, of a mean of checkpoints, its name; None if there is no such run."""
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        return None
    number = numbers.get((parent.name, str(entry.get("run"))))
    if number is None:
        return None
    members = members_in(entry)
    mean = {"mean": candidate_name(entry["step"], members)} if members else {}
    return {"run": number, "step": entry["step"], **mean}


def _winner_notes(board: Board) -> list[str]:
    """What is said of a winner that training did not make better."""
    reasons = {"guessing": "guessing", "untrained": "the untrained model"}
    notes = [(name, board.get(f"no_better_than_{key}")) for key, name in reasons.items()]
    return [f"the best is no better than {name}: {note}" for name, note in notes if note]


def _damage(evaluations: Iterable[Evaluation]) -> list[str]:
    lines = [line for evaluation in evaluations for line in list_in(evaluation.board.get("damaged"))]
    return [f"damaged, excluded: {line}" for line in lines]


# ── files that hold what this program never writes ──────────────────────────────────────────────────────────────────
def scalars(scores: Any) -> dict[str, Any]:
    """Returns the scores that are numbers, or undefined; not matrices and lists."""
    return {name: value for name, value in mapping_in(scores).items() if value is None or is_number(value)}


def _intervals(intervals: Any) -> dict[str, list[float]]:
    return {metric: bounds for metric, bounds in mapping_in(intervals).items() if _is_interval(bounds)}


def _is_interval(bounds: Any) -> bool:
    return isinstance(bounds, list) and len(bounds) == 2 and all(map(is_number, bounds))


def _matrix(scores: Mapping[str, Any]) -> list[list[int]] | None:
    """The confusion matrix: rows are the true classes. Several labels an example have a matrix for each label, which is not shown."""
    matrix = scores.get("confusion_matrix")
    if not isinstance(matrix, list) or not matrix:
        return None
    square = all(isinstance(row, list) and len(row) == len(matrix) for row in matrix)
    return matrix if square and all(is_number(count) for row in matrix for count in row) else None
