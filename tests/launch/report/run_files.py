"""Run folders as training and evaluation leave them, written by hand: numbers are known, and nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sft_dist.recipe.files import write_json
from sft_dist.run.folder import RunFolder, run_id
from tests.launch.conftest import make_recipe

BEGIN = 1_800_000_000.0  # seconds since 1970
STEP_S, VALIDATION_S, STARTUP_S = 1.0, 5.0, 20.0


def loss_at(step: int) -> float:
    return 2.0 / (1 + step / 10)


def lines_of(
    steps: Sequence[int], attempt: int = 1, begin: float = BEGIN, total: int = 40, validate_every: int = 20
) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl: each step takes a second, each validation five."""
    lines: list[dict[str, Any]] = []
    time = begin
    for step in steps:
        time += STEP_S
        common = {"attempt": attempt, "step": step, "total_steps": total, "epoch": step / 20}
        train = {
            "loss": loss_at(step),
            "lr": 1e-3 * (1 - step / total),
            "grad_norm": 1.0,
            "examples_per_s": 32.0,
            "eta_s": 9.0,
        }
        lines.append({"kind": "train", **common, "time": time, **train})
        if step % validate_every == 0:
            time += VALIDATION_S
            scores = {"examples": 50, "loss": loss_at(step) + 0.1, "accuracy": 0.5 + step / 100}
            lines.append({"kind": "validation", **common, "time": time, **scores})
    return lines


def write_run(root: Path, lines: Sequence[Mapping[str, Any]] = (), **changes: object) -> RunFolder:
    """A finished run of 40 steps in one attempt, unless other lines are given."""
    recipe = make_recipe(**changes)
    folder = RunFolder(root / recipe.name / run_id(recipe))
    folder.path.mkdir(parents=True)
    folder.recipe_file.write_text(recipe.model_dump_json())
    write_json(folder.splits_file, {split: {"rows": rows, "contents": "0f" * 32} for split, rows in SPLITS.items()})
    write_json(
        folder.plan_file, {"device": "cpu", "rows": {"labels": ["neg", "pos"], "dropped": {"empty": 2, "duplicate": 0}}}
    )
    lines = lines or lines_of(range(1, 41))
    folder.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in sorted({int(line["attempt"]) for line in lines}):
        write_attempt(
            folder, number, [line for line in lines if line["attempt"] == number], last=number == lines[-1]["attempt"]
        )
    return folder


SPLITS = {"train": 640, "validation": 50, "test": 60}


def write_attempt(folder: RunFolder, number: int, lines: Sequence[Mapping[str, Any]], last: bool) -> None:
    attempt = folder.new_attempt()
    assert attempt.number == number
    begin = iso(lines[0]["time"] - STEP_S)
    facts = {"host": "node1", "world_size": 2, "torch": "2.9", "total_steps": 40, "startup_s": STARTUP_S}
    write_json(attempt.start_file, {"attempt": number, "time": begin, "first_step": lines[0]["step"] - 1, **facts})
    beat = {"rank": 0, "host": "node1", "step": lines[-1]["step"], "phase": "ended", "time": lines[-1]["time"]}
    write_json(attempt.heartbeat_file(0), beat)
    if last:
        outcome = {
            "state": "finished",
            "last_step": lines[-1]["step"],
            "time": iso(lines[-1]["time"]),
            "reason": "all steps done",
        }
        write_json(attempt.outcome_file, outcome)


def iso(time: float) -> str:
    return datetime.fromtimestamp(time, timezone.utc).isoformat(timespec="seconds")


def leaderboard(
    scores: Mapping[tuple[str, int], float], labels: Sequence[str] = ("neg", "pos"), **more: Any
) -> dict[str, Any]:
    """What leaderboard.json holds: (run, step) -> accuracy."""
    ranking = sorted(scores, key=lambda key: -scores[key])
    run, step = ranking[0]

    def of(accuracy: float, examples: int) -> dict[str, Any]:
        right = round(accuracy * examples / 2)
        matrix = [[right, examples // 2 - right], [examples // 2 - right, right]]
        return {
            "examples": examples,
            "loss": 1.0 - accuracy,
            "accuracy": accuracy,
            "mcc": None,
            "confusion_matrix": matrix,
        }

    winner = {
        "run": run,
        "step": step,
        "validation": of(scores[run, step], 50),
        "test": of(scores[run, step] - 0.02, 60),
    }
    rows = [{"run": name, "step": at, "validation": of(scores[name, at], 50)} for name, at in ranking]
    return {
        "metric": "accuracy", "direction": "max", "directions": {"accuracy": "max", "loss": "min"}, "labels": list(labels),
        "winner": winner, "rows": rows, "differences": {}, "no_better_than_guessing": "", "damaged": [], "export": None, **more,
    }  # fmt: skip


def add_class_report(board: dict[str, Any], folder: RunFolder, text: str | None = "a text") -> None:
    """What a sweep records about the best checkpoint of a classification: three bins a split, and 12 errors."""
    bins = [
        {"examples": 20, "confidence": confidence, "accuracy": accuracy}
        for confidence, accuracy in ((0.6, 0.5), (0.8, 0.75), (0.95, 0.9))
    ]
    scores = {"ece": 0.0667, "ece_null_floor": 0.05, "smooth_ece": 0.06, "brier": 0.3, "nll": 0.4, "bins": bins}
    board["winner"] |= {
        "calibration": {
            "validation": scores,
            "test": scores,
            "test_scaled": {**scores, "ece": 0.04},
            "temperature": 1.25,
        },
        "per_class": {
            "test": {
                label: {"precision": None if place else 0.75, "recall": 0.5 + place / 10, "f1": 0.6, "examples": 30}
                for place, label in enumerate(board["labels"])
            }
        },
    }
    board["winner"]["slices"] = {
        "test": [
            {"by": "language", "slice": "de", "examples": 40, "score": 0.6, "interval": [0.45, 0.74], "p_value": 0.004, "worse": True},
            {"by": "language", "slice": "fr", "examples": 12, "score": 0.5, "interval": [0.25, 0.75], "p_value": None, "worse": False},
            {"by": "length (tokens)", "slice": "up to 9", "examples": 60, "score": 0.9, "interval": None, "p_value": 1.0, "worse": False},
        ]
    }  # fmt: skip
    neg, pos = board["labels"]
    worst = [
        {"row": row, "label": neg, "predicted": pos, "probability": 0.99 - row / 1000, "text": text}
        for row in range(12)
    ]
    uncertain = [{"row": 30, "label": neg, "predicted": neg, "probability": 0.51, "text": text}]
    folder.evaluation.mkdir(exist_ok=True)
    errors = {"checkpoint": "0f" * 32, "worst": worst, "most_uncertain": uncertain}
    write_json(folder.errors_file(board["winner"]["step"], "test"), errors)
