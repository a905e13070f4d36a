"""What a diagnosis consists of: causes, findings, and checks that could not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HIGH, MEDIUM, LOW = 0.9, 0.7, 0.5  # confidence

# Cause -> what it means. The order decides among findings of equal confidence.
CAUSES = {
    "diverged": "training diverged",
    "bad-schedule": "the learning rate's schedule does not fit the run",
    "leak": "validation holds what training has seen",
    "truncation": "inputs or answers are truncated",
    "loader-bound": "training waits for its data",
    "dead-class": "a class is never predicted",
    "label-noise": "many labels are wrong",
    "wrong-labels": "labels do not belong to their inputs",
    "lr-too-high": "the learning rate is too high",
    "lr-too-low": "the learning rate is too low",
    "over-fit": "the model over-fits",
    "under-fit": "training ended too early",
    "plateau": "the model cannot fit its data any better",
    "seed-noise": "runs differ by their seeds more than by their settings",
}


@dataclass(frozen=True)
class Finding:
    """One cause, with the numbers and steps that show it."""

    cause: str  # a key of CAUSES
    message: str
    confidence: float  # 0 to 1
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CouldNotRun:
    """A check for which evidence is missing or too thin."""

    reason: str


Outcome = Finding | CouldNotRun | None  # None: the check ran and is silent
