"""What the training loop works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from sft_dist.batches.chunks import Chunks
from sft_dist.batches.loader import MicroBatches
from sft_dist.checkpoints.saver import Saver
from sft_dist.data.rows import Examples
from sft_dist.engines.base import Engine
from sft_dist.recipe.arithmetic import Batch, Steps
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.tasks.base import Loss, Task
from sft_dist.training.metrics_logger import Records
from sft_dist.training.progress import Progress
from sft_dist.tuning import unfreeze_steps


@dataclass
class Training:
    """Everything the loop works on, built by `build.py`."""

    recipe: Recipe
    folder: RunFolder
    attempt: int
    engine: Engine
    saver: Saver
    task: Task
    processor: Any
    schedule: torch.optim.lr_scheduler.LRScheduler
    loss: Loss
    chunks: Chunks
    validation: Examples | None
    batch: Batch
    steps: Steps
    metric: str
    direction: str  # max | min
    progress: Progress
    stop_requested: list[str]  # filled by a signal handler with the reason
    heartbeat: Callable[[int, str], None]  # receives the step and the phase: training, validating, saving

    @property
    def accelerator(self) -> Accelerator:
        return self.engine.accelerator

    @property
    def model(self) -> nn.Module:
        """The model as wrapped for distribution."""
        return self.engine.model

    @cached_property
    def records(self) -> Records:
        """Lines of `metrics.jsonl`; rank 0 alone writes them."""
        file = self.folder.metrics_file if self.accelerator.is_main_process else None
        return Records(file, self.attempt, self.steps, self.progress)

    @cached_property
    def unfreeze_steps(self) -> dict[str, int]:
        """Weight -> first step that trains it, for those that are frozen at first."""
        return unfreeze_steps(self.engine.raw_model, self.recipe.tuning, self.steps.total, self.steps.steps_per_epoch)

    @cached_property
    def source(self) -> MicroBatches:
        """This rank's micro-batches."""
        rank = self.accelerator.process_index
        return MicroBatches(self.chunks, self.batch, rank, self.task, self.processor)
