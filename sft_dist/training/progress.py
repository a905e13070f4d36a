"""How far a training run has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """What a resumed run must know besides weights and optimizer state. It is written to `trainer.json`."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    validations_without_gain: int = 0
    bad_steps_in_a_row: int = 0
    validated: dict[int, dict[str, Any]] = field(default_factory=dict)  # step -> scores
    stream: dict[str, Any] | None = None  # position and digest of the chunk that training is in

    @classmethod
    def read(cls, state: dict[str, Any]) -> Progress:
        return cls(**{**state, "validated": {int(step): scores for step, scores in state["validated"].items()}})
