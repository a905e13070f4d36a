"""A trial of a search, as its study records it. The run folder knows the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

STATES = ("running", "finished", "pruned", "repeated")


@dataclass(frozen=True)
class Trial:
    """One point of the space, and what became of it."""

    number: int
    state: str  # one of STATES; a paused trial is running
    point: Mapping[str, Any]  # key path -> value
    run: str = ""  # id of its run; empty when the planner refused the point
    value: float | None = None  # of a finished trial: its best score
    rungs: tuple[int, ...] = ()  # steps at which it pauses; the last is that of all its steps. Empty: not known
    rung: int = 0  # the rung that it trains towards
    scores: Mapping[int, float] = field(default_factory=dict)  # step -> best score so far
    reason: str = ""  # why it was pruned, or is about to be

    @property
    def last_step(self) -> int | None:
        """Where it pauses; None when it trains to its end."""
        return self.rungs[self.rung] if self.rung < len(self.rungs) - 1 else None

    @property
    def is_paused(self) -> bool:
        return self.state == "running" and not self.reason and self.last_step in self.scores

    @property
    def is_active(self) -> bool:
        return self.state == "running" and not self.is_paused

    @property
    def best_score(self) -> float | None:
        """Its score so far."""
        return self.value if self.value is not None else self.scores[max(self.scores)] if self.scores else None


def better_first(trials: Iterable[Trial], maximize: bool) -> list[Trial]:
    """Returns finished trials, the best first; of equal ones the earlier."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    return sorted(finished, key=lambda trial: ((-1 if maximize else 1) * (trial.value or 0.0), trial.number))
