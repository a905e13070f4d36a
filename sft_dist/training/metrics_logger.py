"""The run's records: lines of `metrics.jsonl`, of the log, and of the trackers."""

from __future__ import annotations

import json
import logging
import math
import time
from typing import Any

from sft_dist.recipe.files import append_line
from sft_dist.recipe.units import format_duration
from sft_dist.training.state import Training

log = logging.getLogger("sft_dist")


class MetricsLogger:
    """Speed, and a line of the log every `log_every` steps."""

    def __init__(self, t: Training) -> None:
        self.t = t
        self.started = self.since = time.monotonic()
        self.first_step = t.progress.step
        self.examples = 0

    def log_step(self, loss: float, lr: float, grad_norm: float, examples: int) -> None:
        t, step = self.t, self.t.progress.step
        self.examples += examples
        if step % t.recipe.train.log_every and step != t.steps.total and step != self.first_step + 1:
            return
        timestamp = time.monotonic()
        rate = self.examples / max(timestamp - self.since, 1e-9)
        eta_s = (timestamp - self.started) / (step - self.first_step) * (t.steps.total - step)
        self.since, self.examples = timestamp, 0
        values = {
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "examples_per_s": round(rate, 2),
            "eta_s": round(eta_s, 1),
        }
        record(t, "train", values)
        t.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)
        if t.accelerator.is_main_process:
            log.info(
                "step %d/%d  loss %.4f  lr %.2e  %.1f examples/s  %s left",
                step, t.steps.total, loss, lr, rate, format_duration(eta_s),
            )  # fmt: skip


def record(t: Training, kind: str, values: dict[str, Any], step: int | None = None) -> None:
    """A line of `metrics.jsonl`, by rank 0; of the current step unless another is named. NaN and infinity are no JSON: null."""
    if t.accelerator.is_main_process:
        step = t.progress.step if step is None else step
        line = {
            "kind": kind,
            "attempt": t.attempt,
            "step": step,
            "total_steps": t.steps.total,
            "epoch": _epoch(t, step),
            "time": round(time.time(), 3),
            **{
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in values.items()
            },
        }
        append_line(t.folder.metrics_file, json.dumps(line))


def _epoch(t: Training, step: int) -> float | None:
    """How many are behind it; of a stream, whose length is not known, the whole ones."""
    if t.steps.steps_per_epoch is not None:
        return round(step / t.steps.steps_per_epoch, 4)
    return float(t.progress.stream["place"]["epoch"]) if t.progress.stream else None
