"""Evidence written by hand: a healthy run, and changes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from launch.diagnose.evidence import CheckFinding, DataCheck, Evaluation, Evidence, Series

STEPS = 100


def series(function: Callable[[int], float], every: int = 2) -> Series:
    return tuple((step, function(step)) for step in range(every, STEPS + 1, every))


def falling(step: int) -> float:
    """A loss that falls from 1 to 0.2 and flattens."""
    return 0.2 + 0.8 * math.exp(-step / 20)


def linear_rate(step: int) -> float:
    return 1e-3 * min(step / 10, (STEPS - step) / 90)


def evidence(
    loss: Callable[[int], float] = falling,
    validation_loss: Callable[[int], float] = lambda step: falling(step) + 0.05,
    lr: Callable[[int], float] = linear_rate,
    loading: float = 0.05,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Evidence:
    values: dict[str, Any] = {
        "run": "demo/0a1b", "folder": "/runs/demo/0a1b", "state": "finished", "cause": "all steps done",
        "settings": {
            "train.lr": 1e-3, "train.steps": STEPS, "train.optimizer.name": "adamw", "train.warmup": "10%",
            "train.clip_norm": 1.0, "tuning.method": "full", "data.max_length": 64, "data.workers": 0, **(settings or {}),
        },
        "step": STEPS, "total_steps": STEPS, "epochs": 4.0,
        "train": {
            "loss": series(loss), "lr": series(lr), "grad_norm": series(lambda step: 1.0),
            "loading_share": series(lambda step: loading),
        },
        "validation": {"loss": series(validation_loss, every=10), "accuracy": series(lambda step: 0.5 + step / 300, every=10)},
        "metric": "accuracy", "evaluation": evaluation(), "data_check": DataCheck(rows={"train": 400, "validation": 100}),
    }  # fmt: skip
    return Evidence(**{**values, **changes})


def evaluation(
    confusion: tuple[tuple[int, ...], ...] = ((42, 8), (9, 41)), validation: float = 0.83, test: float = 0.8
) -> Evaluation:
    scores = {"accuracy": validation, "examples": 100.0, "loss": 0.25}
    return Evaluation(
        validation=scores,
        test={**scores, "accuracy": test},
        untrained={"accuracy": 0.5, "loss": 1.05},
        confusion=confusion,
        labels=("neg", "pos"),
    )


def checked(kind: str, count: int, share: float | None = None) -> DataCheck:
    finding = CheckFinding(kind, f"{count} rows", count, share)
    return DataCheck((finding,), {"train": 400, "validation": 100}, {"train": 150.0})
