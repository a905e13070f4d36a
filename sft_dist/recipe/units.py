"""Amounts with a unit: `0.5 epochs`, `6%`, `2h30m`, `32GB`. Kept as the user wrote them; read by the functions here."""

from __future__ import annotations

import math
import re

SHORTEST_PERIOD = 1e-4  # epochs; below it, no data set has a step that short

_AMOUNT = re.compile(r"^(\d+(?:\.\d+)?)\s*(%|steps?|epochs?)$")
_TIME_PARTS = re.compile(r"^(?:(\d+)\s*d)?\s*(?:(\d+)\s*h)?\s*(?:(\d+)\s*(?:min|m))?\s*(?:(\d+)\s*s)?$")
_TIME_CLOCK = re.compile(r"^(?:(\d+)-)?(\d{1,2}):(\d{2}):(\d{2})$")
_MEMORY = re.compile(r"^(\d+(?:\.\d+)?)\s*(MB|GB|TB|MiB|GiB|TiB)$")
_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def check_amount(text: str) -> str:
    """Accepts `6%`, `100 steps` or `0.5 epochs`. Raises ValueError."""
    match = _AMOUNT.match(text)
    if not match:
        raise ValueError("expected a number with a unit: `6%`, `100 steps` or `0.5 epochs`")
    if match[2] == "%" and float(match[1]) >= 100:
        raise ValueError("expected less than 100%")
    if match[2].startswith("step") and "." in match[1]:
        raise ValueError("steps are whole numbers")
    return text


def check_period(text: str) -> str:
    """Accepts `200 steps` or `0.5 epochs`, above zero. Raises ValueError."""
    match = _AMOUNT.match(text)
    if not match or match[2] == "%":
        raise ValueError("expected a number with a unit: `200 steps` or `0.5 epochs`")
    check_amount(text)
    if float(match[1]) == 0:
        raise ValueError("expected more than zero")
    if float(match[1]) < SHORTEST_PERIOD:
        raise ValueError(f"expected at least {SHORTEST_PERIOD:g} epochs")
    return text


def in_epochs(text: str) -> bool:
    """Whether a period is given in epochs."""
    return text.rstrip("s").endswith("epoch")


def amount_in_steps(text: str, total_steps: int, steps_per_epoch: int | None) -> int:
    """Returns `text` in optimizer steps, rounded up; never more than `total_steps`."""
    match = _AMOUNT.match(text)
    assert match, text
    number, unit = match[1], match[2]
    if unit == "%":
        steps = _ceil(float(number) / 100 * total_steps)
    elif unit.startswith("step"):
        steps = int(number)
    else:
        assert steps_per_epoch, text
        steps = _ceil(float(number) * steps_per_epoch)
    return min(steps, total_steps)


def period_in_steps(text: str, steps_per_epoch: int | None) -> float:
    """Returns the length of a period: `0.5 epochs` of 7 -> 3.5."""
    match = _AMOUNT.match(text)
    assert match, text
    every = float(match[1])
    if in_epochs(text):
        assert steps_per_epoch, text
        every *= steps_per_epoch
    return every


def points_at(text: str, total_steps: int, steps_per_epoch: int | None) -> list[int]:
    """Returns the steps at which a period ends, always with `total_steps` as the last: `0.5 epochs` of 7 -> 4, 7, 11, 14 ..."""
    every = period_in_steps(text, steps_per_epoch)
    points: list[int] = []
    turn = 1
    while (step := _ceil(every * turn)) < total_steps:
        if not points or step > points[-1]:
            points.append(step)
        turn = turn + 1 if every >= 1 else max(turn + 1, math.floor(step / every))
    return [*points, total_steps]


def check_time(text: str) -> str:
    """Accepts `90min`, `2h30m`, `1d`, `02:00:00` or `1-12:00:00`. Raises ValueError."""
    seconds_of(text)
    return text


def seconds_of(text: str) -> int:
    """Returns a time limit in seconds. Raises ValueError."""
    if match := _TIME_CLOCK.match(text):
        days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
        if minutes > 59 or seconds > 59:
            raise ValueError("minutes and seconds go up to 59")
    elif text.strip() and (match := _TIME_PARTS.match(text)):
        days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    else:
        raise ValueError("expected a time with units: `90min`, `2h30m`, `1d` or `1-12:00:00`")
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ValueError("expected more than zero")
    return total


def check_memory(text: str) -> str:
    """Accepts `32GB`, `512MiB`. Raises ValueError."""
    bytes_of(text)
    return text


def bytes_of(text: str) -> int:
    """Returns an amount of memory in bytes. Raises ValueError."""
    match = _MEMORY.match(text)
    if not match:
        raise ValueError("expected memory with a unit: `32GB`, `512MiB`")
    if float(match[1]) == 0:
        raise ValueError("expected more than zero")
    return int(float(match[1]) * _BYTES[match[2]])


def format_duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:02:10`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _ceil(number: float) -> int:
    return math.ceil(number - 1e-9)  # 0.1 * 30 is 3.0000000000000004 and means 3
