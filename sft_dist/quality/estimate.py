"""How many steps a run takes, exactly, and how long, where something is known about it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft_dist.batches.plan import epoch_batches
from sft_dist.recipe.arithmetic import batch_of, steps_of
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder

UNKNOWN = "not known: no earlier run of this recipe; --time measures it"


@dataclass(frozen=True)
class Estimate:
    steps_per_epoch: int | None  # None: of a stream
    steps: int
    tokens_per_epoch: int | None  # without padding; None: lengths are not in tokens
    padding: float | None  # share of a padded epoch that is padding, at the largest micro-batch one process would take
    seconds: float | None
    source: str  # where `seconds` comes from, or why it is not known

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    recipe: Recipe, lengths: np.ndarray | None, train_rows: int, rate: tuple[float, str] | None = None
) -> Estimate:
    """lengths: (examples,) tokens; `train_rows` where they are not known. rate: examples a second, and who says so."""
    rows = len(lengths) if lengths is not None else train_rows
    steps = steps_of(recipe, rows)
    assert steps.steps_per_epoch is not None
    seconds = None
    if rate is not None:
        seconds = steps.total / steps.steps_per_epoch * rows / rate[0]
    return Estimate(
        steps.steps_per_epoch,
        steps.total,
        int(lengths.sum()) if lengths is not None else None,
        padding_share(recipe, lengths) if lengths is not None else None,
        seconds,
        rate[1] if rate is not None else UNKNOWN,
    )


def padding_share(recipe: Recipe, lengths: np.ndarray) -> float:
    """Of the first epoch on one process."""
    size = batch_of(recipe, 1).micro_batch
    padded = 0
    for batch in epoch_batches(lengths, recipe.train.seed, 0, recipe.train.global_batch, recipe.train.batching):
        ordered = np.sort(lengths[batch])[::-1]
        padded += sum(
            int(ordered[start]) * len(ordered[start : start + size]) for start in range(0, len(ordered), size)
        )
    return 1 - float(lengths.sum()) / max(padded, 1)


def earlier_rate(recipe: Recipe, runs: Path) -> tuple[float, str] | None:
    """Examples a second of the newest run of a recipe with this name, model, tuning and length of inputs."""
    for folder in sorted(_metrics_of(runs / recipe.name), key=lambda file: -file.stat().st_mtime):
        try:
            earlier = RunFolder(folder.parent).recipe()
        except Exception:
            continue  # of another version of this program
        is_comparable = (earlier.model, earlier.tuning, earlier.data.max_length) == (
            recipe.model,
            recipe.tuning,
            recipe.data.max_length,
        )
        if is_comparable and (rates := _rates(folder)):
            return statistics.median(rates), f"{statistics.median(rates):.3g} examples/s in run {folder.parent.name}"
    return None


def _metrics_of(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*/metrics.jsonl")


def _rates(file: Path) -> list[float]:
    """Without the first line of an attempt, which holds the warm-up."""
    rates, attempt = [], None
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if values.get("kind") == "train" and values.get("examples_per_s"):
            if values.get("attempt") == attempt:
                rates.append(float(values["examples_per_s"]))
            attempt = values.get("attempt")
    return rates
