"""Amounts with a unit."""

from __future__ import annotations

import pytest

from sft_dist.recipe.units import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0:00"), (41.6, "0:42"), (725, "12:05"), (3599.7, "1:00:00"), (10930, "3:02:10")]
)
def test_a_duration_is_minutes_and_seconds_with_hours_when_there_are_any(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
