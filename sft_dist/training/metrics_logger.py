"""The run's records: lines of `metrics.jsonl`, of the log, and of the trackers."""

from __future__ import annotations

import json
import logging
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from sft_dist.recipe.arithmetic import Steps
from sft_dist.recipe.files import append_line
from sft_dist.recipe.units import format_duration
from sft_dist.training.progress import Progress

log = logging.getLogger("sft_dist")

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Records:
    """The lines of `metrics.jsonl`."""

    file: Path | None  # None on ranks that do not write
    attempt: int
    steps: Steps
    progress: Progress

    def write(self, kind: str, values: dict[str, Any], step: int | None = None) -> None:
        """Writes a line, for the current step unless another is named. JSON has no NaN and no infinity: they become null."""
        if self.file is None:
            return
        step = self.progress.step if step is None else step
        line = {
            "kind": kind,
            "attempt": self.attempt,
            "step": step,
            "total_steps": self.steps.total,
            "epoch": self._epoch(step),
            "time": round(time.time(), 3),
            **{
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in values.items()
            },
        }
        append_line(self.file, json.dumps(line))

    def _epoch(self, step: int) -> float | None:
        """Returns the number of epochs trained; of a stream, whose length is not known, only the complete ones."""
        if self.steps.steps_per_epoch is not None:
            return round(step / self.steps.steps_per_epoch, 4)
        return float(self.progress.stream["place"]["epoch"]) if self.progress.stream else None


def peak_memory() -> int:
    """Returns the most bytes that this process has used so far: of its GPU, else of main memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class MetricsLogger:
    """Speed, and a line of the log every `log_every` steps."""

    def __init__(self, records: Records, accelerator: Accelerator, log_every: int) -> None:
        self.records, self.accelerator, self.log_every = records, accelerator, log_every
        self.started = self.since = time.monotonic()
        self.first_step = self.step
        self.examples = 0
        self.loading_s = 0.0  # since the last line, waiting for batches

    @property
    def step(self) -> int:
        return self.records.progress.step

    def time_loading(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields the batches, and counts the time until each is ready."""
        while True:
            started = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.loading_s += time.monotonic() - started
            yield batch

    def log_step(self, loss: float, lr: float, grad_norm: float, examples: int) -> None:
        step, total = self.step, self.records.steps.total
        self.examples += examples
        if step % self.log_every and step != total and step != self.first_step + 1:
            return
        timestamp = time.monotonic()
        duration_s = max(timestamp - self.since, 1e-9)
        rate, loading_share = self.examples / duration_s, min(self.loading_s / duration_s, 1.0)
        eta_s = (timestamp - self.started) / (step - self.first_step) * (total - step)
        self.since, self.examples, self.loading_s = timestamp, 0, 0.0
        values = {
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "examples_per_s": round(rate, 2),
            "loading_share": round(loading_share, 3),
            "eta_s": round(eta_s, 1),
            "memory_gb": round(peak_memory() / 1e9, 3),
        }
        self.records.write("train", values)
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)
        if self.accelerator.is_main_process:
            log.info(
                "step %d/%d  loss %.4f  lr %.2e  %.1f examples/s  %s left",
                step, total, loss, lr, rate, format_duration(eta_s),
            )  # fmt: skip
