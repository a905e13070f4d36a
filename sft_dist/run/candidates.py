"""What a sweep chooses among: the checkpoints of a run and, if asked for, means of several. A checkpoint is named by its step, a mean
by the steps of its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_dist.recipe.errors import Problem, UserError

_NAMED_STEPS = 8


@dataclass(frozen=True)
class Averaging:
    """Which checkpoints of a run are averaged: the newest `num_last`, or those of the greedy soup where it is None."""

    num_last: int | None = None

    def __str__(self) -> str:
        return "greedy" if self.num_last is None else f"last:{self.num_last}"


def parse_averaging(text: str) -> Averaging:
    """Reads `greedy` or `last:K`. Raises UserError."""
    if text == "greedy":
        return Averaging()
    kind, _, number = text.partition(":")
    if kind == "last" and number.isdecimal() and int(number) >= 2:
        return Averaging(int(number))
    hint = (
        "last:3 averages the newest three checkpoints of each run, greedy those that do not lower the validation score"
    )
    raise UserError(Problem("is no way to average", "--average", value=text, valid=("last:K", "greedy"), hint=hint))


def candidate_name(step: int, members: Sequence[int] = ()) -> str:
    """Returns `step 300`, or `mean of steps 100, 200, 300`. A mean of many is called by their number and its first and last step."""
    if not members:
        return f"step {step}"
    if len(members) > _NAMED_STEPS:
        return f"mean of {len(members)} steps from {members[0]} to {members[-1]}"
    return f"mean of steps {', '.join(map(str, members))}"


def members_in(entry: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the steps of a mean's members from a row of a leaderboard or from a record; none of a checkpoint, or of a damaged file."""
    members = entry.get("members")
    if not isinstance(members, list) or any(type(step) is not int for step in members):
        return ()
    return tuple(members)
