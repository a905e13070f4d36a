"""Leaderboards of runs: those beside the runs and those above them as one table for each metric that selects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.report.classes import class_report
from sft_dist.recipe.files import read_json
from sft_dist.run.folder import RunFolder

Board = dict[str, Any]  # what leaderboard.json holds
FINAL_SPLITS = ("test", "train")
_TESTS = ("p_value", "not_distinguishable")  # of a row against the winner of its leaderboard


def read_leaderboards(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns a table for each metric by which these runs were evaluated, the better checkpoint first."""
    numbers = {(folder.parent.name, folder.name): number for number, folder in enumerate(folders)}
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for folder, board in _boards(folders):
        rows = [row for row in (_row(row, board, folder, numbers) for row in board["rows"]) if row]
        if not rows:
            continue
        table = tables.setdefault((str(board.get("metric")), str(board.get("direction"))), _empty_table(board))
        evaluated = {(row["run"], row["step"]) for row in table["rows"]}
        table["rows"] += [row for row in rows if (row["run"], row["step"]) not in evaluated]
        table["finals"] += _finals(board, folder, numbers)
        table["notes"] += _notes(board)
    return [_with_class_report(_sorted(table), folders) for table in tables.values()]


def _boards(folders: Sequence[Path]) -> Iterable[tuple[Path, Board]]:
    """(recipe's folder, leaderboard): those of all runs of a recipe first, because they compare the most."""
    parents = dict.fromkeys(folder.parent for folder in folders)
    owners = [(parent, parent) for parent in parents] + [(folder.parent, folder) for folder in folders]
    for parent, owner in owners:
        board = read_json(owner / "leaderboard.json")
        if isinstance(board, dict) and isinstance(board.get("rows"), list) and isinstance(board.get("winner"), dict):
            yield parent, board


def _empty_table(board: Board) -> dict[str, Any]:
    return {
        "metric": str(board.get("metric")),
        "direction": str(board.get("direction")),
        "directions": board.get("directions") or {},
        "smallest_difference": board.get("smallest_difference") or {},
        "selection_note": str(board.get("selection_note") or ""),
        "test_note": str(board.get("test_note") or ""),
        "rows": [],
        "finals": [],
        "notes": [],
    }


def _row(
    row: Mapping[str, Any], board: Board, parent: Path, numbers: Mapping[tuple[str, str], int]
) -> dict[str, Any] | None:
    """A checkpoint; None if its run is not in the report."""
    number = numbers.get((parent.name, str(row.get("run"))))
    if number is None:
        return None
    optional = {key: row[key] for key in ("intervals", *_TESTS) if row.get(key) is not None}
    winner = board["winner"]
    return {
        "run": number,
        "step": row.get("step"),
        "scores": scalars(row.get("validation")),
        "winner": (numbers.get((parent.name, str(winner.get("run")))), winner.get("step")),
        **optional,
    }


def scalars(scores: Any) -> dict[str, Any]:
    """Returns the scores that are numbers, or undefined; not matrices and lists."""
    if not isinstance(scores, dict):
        return {}
    return {name: value for name, value in scores.items() if value is None or isinstance(value, int | float)}


def _finals(board: Board, parent: Path, numbers: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """The winner's scores on validation and on the splits that were scored once."""
    winner = board["winner"]
    number = numbers.get((parent.name, str(winner.get("run"))))
    if number is None:
        return []
    splits = {split: winner[split] for split in ("validation", *FINAL_SPLITS) if isinstance(winner.get(split), dict)}
    return [
        {
            "run": number,
            "step": winner.get("step"),
            "labels": [str(label) for label in board.get("labels") or []],
            "scores": {split: scalars(scores) for split, scores in splits.items()},
            "intervals": winner.get("intervals") or {},
            "confusion": {split: matrix for split, scores in splits.items() if (matrix := _matrix(scores))},
            "export": board.get("export"),
            "winner": winner,
        }
    ]


def _matrix(scores: Mapping[str, Any]) -> list[list[int]] | None:
    """The confusion matrix: rows are the true classes. Several labels an example have a matrix for each label, which is not shown."""
    matrix = scores.get("confusion_matrix")
    if not isinstance(matrix, list) or not matrix:
        return None
    square = all(isinstance(row, list) and len(row) == len(matrix) for row in matrix)
    return matrix if square and all(isinstance(count, int | float) for row in matrix for count in row) else None


def _notes(board: Board) -> list[str]:
    notes = [str(board["no_better_than_guessing"])] if board.get("no_better_than_guessing") else []
    return notes + [f"damaged, excluded: {line}" for line in board.get("damaged") or []]


def _sorted(table: dict[str, Any]) -> dict[str, Any]:
    """A leaderboard is sorted already; the rows of several are not, and were tested against different winners."""
    sign = -1.0 if table["direction"] == "max" else 1.0
    rows = sorted(table["rows"], key=lambda row: _sort_key(row, table["metric"], sign))
    best = (rows[0]["run"], rows[0]["step"])
    ranks = {(row["run"], row["step"]): rank for rank, row in enumerate(rows)}
    return {
        **table,
        "rows": [_tested_against(best, row) for row in rows],
        "finals": sorted(table["finals"], key=lambda final: ranks.get((final["run"], final["step"]), len(ranks))),
        "notes": list(dict.fromkeys(table["notes"])),
    }


def _tested_against(best: tuple[int, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The row, with its tests only if they compare it with the best of the table."""
    excluded = ("winner",) if row["winner"] == best else ("winner", *_TESTS)
    return {key: value for key, value in row.items() if key not in excluded}


def _with_class_report(table: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Of the best checkpoint alone: those of a hundred runs would exceed the limit of the page."""
    finals = [{key: value for key, value in final.items() if key != "winner"} for final in table["finals"]]
    if finals:
        folder = RunFolder(folders[finals[0]["run"]])
        finals[0] |= class_report(table["finals"][0]["winner"], folder)
    return {**table, "finals": finals}


def _sort_key(row: Mapping[str, Any], metric: str, sign: float) -> tuple[bool, float, float, int]:
    score, loss = row["scores"].get(metric), row["scores"].get("loss")
    return score is None, sign * (score or 0.0), loss if loss is not None else float("inf"), row["step"] or 0
