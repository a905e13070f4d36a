"""Curves of runs from their `metrics.jsonl`, on common steps and thinned out to what a screen can show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.report.values import is_number
from launch.run_state import parse_line
from sft_dist.recipe.files import irregular

Line = dict[str, Any]  # of metrics.jsonl
Curve = dict[int, float | None]  # step -> value; None for NaN and infinity

CURVE_KINDS = ("train", "validation")
DIGITS = 5
# Neither is a measurement of training.
_NO_CURVE = frozenset(["kind", "attempt", "step", "total_steps", "epoch", "time", "eta_s", "examples"])
_ABSENT = False  # in JSON: no value at this step, unlike null, which is NaN or infinity


def read_metrics(file: Path) -> list[Line]:
    """Returns the complete lines of metrics.jsonl; none where it cannot be read."""
    try:
        if irregular(file):
            return []
        lines = file.read_bytes().splitlines()
    except OSError:
        return []
    parsed = (parse_line(line) for line in lines)
    return [line for line in parsed if _is_complete(line)]


def _is_complete(line: Line) -> bool:
    return (
        isinstance(line.get("step"), int)
        and isinstance(line.get("attempt"), int)
        and isinstance(line.get("time"), int | float)
        and isinstance(line.get("kind"), str)
    )


def first_steps(lines: Iterable[Line]) -> dict[int, int]:
    """Returns of each attempt the first step that it recorded."""
    steps: dict[int, int] = {}
    for line in lines:
        if line["kind"] in CURVE_KINDS:
            steps.setdefault(line["attempt"], line["step"])
    return steps


def is_repeated(line: Line, first: Mapping[int, int]) -> bool:
    """Whether a later attempt, resumed from an earlier checkpoint, trained this step again: the weights do not contain it."""
    return any(attempt > line["attempt"] and step <= line["step"] for attempt, step in first.items())


def curves_of(lines: Sequence[Line]) -> dict[tuple[str, str], Curve]:
    """Returns (kind, name) -> curve, without the steps that a later attempt repeated."""
    first = first_steps(lines)
    curves: dict[tuple[str, str], Curve] = {}
    for line in lines:
        if line["kind"] not in CURVE_KINDS or is_repeated(line, first):
            continue
        for name, value in line.items():
            if name not in _NO_CURVE and (value is None or is_number(value)):
                curves.setdefault((line["kind"], name), {})[line["step"]] = value
    return {key: curve for key, curve in curves.items() if any(value is not None for value in curve.values())}


def align(curves: Mapping[int, Curve], max_points: int) -> dict[str, Any]:
    """Returns curves of several runs on the same steps, for the page.

    With more than `max_points` steps, each bucket of neighbouring steps keeps of every run its lowest and its highest value, so that no
    spike is lost; a value then stands less than a bucket beside its step.
    """
    steps = sorted({step for curve in curves.values() for step in curve})
    if len(steps) <= max_points:
        values = {run: [_rounded(curve.get(step, _ABSENT)) for step in steps] for run, curve in curves.items()}
        return {"steps": _deltas(steps), "values": values, "bucket": 1}
    size = -(-2 * len(steps) // max_points)
    buckets = [steps[start : start + size] for start in range(0, len(steps), size)]
    values = {
        run: [_rounded(value) for bucket in buckets for value in _extremes(curve, bucket)]
        for run, curve in curves.items()
    }
    return {"steps": _deltas(_edges(buckets)), "values": values, "bucket": size}


def _edges(buckets: Sequence[Sequence[int]]) -> list[int]:
    """Two steps a bucket. The last bucket may hold a single step, after which there is none to stand for."""
    return [step for bucket in buckets for step in (bucket[0], max(bucket[-1], bucket[0] + 1))]


def _extremes(curve: Curve, bucket: Sequence[int]) -> tuple[Any, Any]:
    """The lowest and the highest value, in the order in which they occur."""
    present = [(step, curve[step]) for step in bucket if step in curve]
    numbers = [(value, step) for step, value in present if value is not None]
    if not numbers:
        return (None, None) if present else (_ABSENT, _ABSENT)
    if len(numbers) == 1:
        return numbers[0][0], _ABSENT
    low, high = min(numbers), max(numbers)
    return (low[0], high[0]) if low[1] <= high[1] else (high[0], low[0])


def _deltas(steps: Sequence[int]) -> list[int]:
    """Differences compress far better than the steps themselves."""
    return [step - previous for previous, step in zip([0, *steps], steps, strict=False)]


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
