"""Arithmetic on curves: levels at their ends, falls, noise. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise

from launch.diagnose.evidence import Series

END_SHARE = 0.2  # of a curve's points that count as its end
MIN_END_POINTS = 3
NOTHING = 1e-3  # a loss below it has nothing left to learn, so that its changes mean nothing


def values(series: Series) -> list[float]:
    """Returns the values without their steps."""
    return [value for _, value in series]


def num_end_points(series: Series) -> int:
    """Returns how many points count as the end of a curve."""
    return min(len(series), max(MIN_END_POINTS, round(END_SHARE * len(series))))


def end_level(series: Series) -> float:
    """Returns the median of a curve's last points."""
    return statistics.median(values(series)[-num_end_points(series) :])


def start_level(series: Series) -> float:
    """Returns the median of a curve's first two points: later ones have learned already."""
    return statistics.fmean(values(series)[:2])


def middle_level(series: Series) -> float:
    """Returns the median of the points around the middle of a curve."""
    count, middle = num_end_points(series), len(series) // 2
    return statistics.median(values(series)[max(0, middle - count // 2) : middle + count // 2 + 1])


def level_near(series: Series, step: int) -> float:
    """Returns the median of the points that are nearest to a step."""
    nearest = sorted(series, key=lambda point: abs(point[0] - step))[: num_end_points(series)]
    return statistics.median(value for _, value in nearest)


def lowest(series: Series) -> tuple[int, float]:
    """Returns step and value of the lowest point, the first of equal ones."""
    return min(series, key=lambda point: (point[1], point[0]))


def change(before: float, after: float) -> float:
    """Returns the change from one level to another, as a share of the first."""
    return (after - before) / max(before, NOTHING)


def roughness(series: Series) -> float:
    """Returns the mean size of a change from point to point, as a share of the mean value."""
    sizes = [abs(b - a) for a, b in pairwise(values(series))]
    return statistics.fmean(sizes) / max(statistics.fmean(values(series)), 1e-12) if sizes else 0.0


def falling_share(numbers: Sequence[float]) -> float:
    """Returns the share of neighbours of which the second is not above the first."""
    pairs = list(pairwise(numbers))
    return sum(b <= a for a, b in pairs) / len(pairs) if pairs else 0.0
