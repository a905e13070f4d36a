"""What the processes of a run did with their time: attempts, their phases, and the share that trained the final weights (goodput)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from launch.report.curves import Line, first_steps, is_repeated
from launch.report.values import whole_number_in
from sft_dist.recipe.files import read_object
from sft_dist.run.attempt import is_running
from sft_dist.run.causes import classify_attempt, read_facts
from sft_dist.run.folder import AttemptFolder, RunFolder

# What training did in the time before such a line was written. Checkpoints are written in the background, and take no time.
_PHASES = {"train": "training", "skipped": "training", "validation": "validation", "snapshot": "saving"}
MAX_PHASES = 80  # of an attempt; more are a pattern that nobody can see
PRODUCTIVE = "training"


def attempts_of(folder: RunFolder, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Returns every attempt, oldest first: its time, its end and the phases between, in seconds since 1970."""
    attempts = folder.all_attempts()
    running = attempts[-1:] if is_running(folder) else []
    first = first_steps(lines)
    return [
        _attempt(
            folder, attempt, [line for line in lines if line["attempt"] == attempt.number], first, attempt in running
        )
        for attempt in attempts
    ]


def _attempt(
    folder: RunFolder, attempt: AttemptFolder, lines: Sequence[Line], first: dict[int, int], alive: bool
) -> dict[str, Any]:
    facts = read_facts(attempt)
    state, cause = ("running", "") if alive else _end(folder, attempt)
    trained = _seconds_since_1970(facts.start.get("time"))
    times = [trained, *(_seconds_since_1970(record.get("time")) for record in (facts.outcome, facts.exit))]
    times += [_seconds_since_1970(record.get("time")) for record in (*facts.heartbeats, *facts.errors)]
    known_times = [time for time in times if time is not None] + [line["time"] for line in lines]
    if not known_times:
        return {"number": attempt.number, "state": state, "cause": cause}
    start = min(known_times) - _startup_s(facts.start)
    end = max(known_times)
    phases = phases_of(lines, first, start, trained if trained is not None else end, end)
    return {
        "number": attempt.number,
        "state": state,
        "cause": cause,
        "start": round(start, 1),
        "end": round(end, 1),
        "processes": whole_number_in(facts.start.get("world_size")) or 1,
        "host": str(facts.start.get("host", "")),
        "first_step": facts.start.get("first_step"),
        "last_step": max((line["step"] for line in lines), default=None),
        "seconds": _sums(phases),
        "phases": _broad([[kind, round(a - start, 1), round(b - start, 1)] for kind, a, b in phases]),
    }


def _end(folder: RunFolder, attempt: AttemptFolder) -> tuple[str, str]:
    end = classify_attempt(folder, attempt)
    return end.state, end.line


def _startup_s(start: dict[str, Any]) -> float:
    """Seconds before `start.json`, which is written when everything is loaded. Older runs do not record them."""
    seconds = start.get("startup_s")
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def phases_of(
    lines: Iterable[Line], first: dict[int, int], start: float, trained: float, end: float
) -> list[tuple[str, float, float]]:
    """Returns (phase, from, to) of an attempt without gaps. `trained`: when training began."""
    phases: list[tuple[str, float, float]] = [("starting", start, trained)]
    for line in lines:
        phase = _PHASES.get(line["kind"])
        before = phases[-1][2]
        if phase is None or line["time"] <= before:
            continue
        phases.append(("repeated" if is_repeated(line, first) else phase, before, line["time"]))
    phases.append(("ending", phases[-1][2], end))
    return _merged([phase for phase in phases if phase[2] > phase[1]])


def _merged(phases: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Neighbours of the same kind as a single phase."""
    merged: list[tuple[str, float, float]] = []
    for kind, start, end in phases:
        if merged and merged[-1][0] == kind:
            start = merged.pop()[1]
        merged.append((kind, start, end))
    return merged


def _broad(phases: list[list[Any]]) -> list[list[Any]]:
    """Many short phases of training, validation and saving as a single phase of training: on a screen they are too narrow."""
    if len(phases) <= MAX_PHASES:
        return phases
    interrupted = {"training", "validation", "saving"}
    merged = _merged([("training" if kind in interrupted else kind, a, b) for kind, a, b in phases])
    return [list(phase) for phase in merged]


def _sums(phases: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for kind, start, end in phases:
        sums[kind] = sums.get(kind, 0.0) + end - start
    return {kind: round(seconds, 1) for kind, seconds in sums.items()}


def cost_of(attempts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns process seconds by phase, all of them, and the goodput: the share that trained the final weights."""
    seconds: dict[str, float] = {}
    for attempt in attempts:
        for kind, duration in attempt.get("seconds", {}).items():
            seconds[kind] = seconds.get(kind, 0.0) + duration * attempt["processes"]
    total = sum(seconds.values())
    goodput = seconds.get(PRODUCTIVE, 0.0) / total if total else None
    return {
        "seconds": {kind: round(value, 1) for kind, value in seconds.items()},
        "total": round(total, 1),
        "goodput": goodput,
    }


def environment_of(folder: RunFolder) -> dict[str, Any]:
    """Returns what the newest attempt recorded of its machine and its software."""
    starts = (read_object(attempt.start_file) for attempt in reversed(folder.all_attempts()))
    newest = next(filter(None, starts), {})
    passing = {"attempt", "time", "pid", "first_step", "total_steps", "startup_s", "restart_count"}
    return {key: value for key, value in newest.items() if key not in passing}


def _seconds_since_1970(time: Any) -> float | None:
    """Files of ranks hold seconds, those of attempts ISO texts."""
    if isinstance(time, int | float):
        return float(time)
    try:
        return datetime.fromisoformat(time).timestamp()
    except (TypeError, ValueError):
        return None
