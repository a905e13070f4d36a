"""The training loop: for each step the batch, the loss, backward, step, log, maybe validate and save.

One optimizer step is one global batch. Its loss is a sum over examples divided by the weight of the whole global batch
(`losses.py`), so the gradient does not depend on how processes and accumulation share the batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn

from sft_dist.batches.chunks import Chunk, Chunks
from sft_dist.batches.loader import MicroBatch, MicroBatches, load_micro_batches
from sft_dist.batches.plan import micro_batch_seed
from sft_dist.checkpoints import store as ckpt
from sft_dist.checkpoints.saver import Saved, Saver
from sft_dist.data.rows import Examples
from sft_dist.engines.base import Engine, broadcast_buffers
from sft_dist.evaluation.inference import (
    assemble,
    better,
    forward,
    length_sorted_batches,
    normalizers_of,
    scores_of,
    weights_of,
)
from sft_dist.recipe.arithmetic import Batch, Steps
from sft_dist.recipe.files import read_json
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.tasks.base import Loss, Task
from sft_dist.training.metrics_logger import Meter, record
from sft_dist.training.nonfinite import check_predictions, check_weights, update
from sft_dist.training.snapshot import Snapshot
from sft_dist.tuning import unfreeze_steps, zero_frozen_gradients
from sft_dist.tuning.optimizers import before_evaluation, before_training

log = logging.getLogger("sft_dist")

ASK_EVERY = 32  # batches of a validation between two looks at whether to stop


class _Interrupted(Exception):
    """A validation was left because of a request to stop, which it gives as the reason."""


@dataclass
class Progress:
    """Everything a resumed run must know besides weights and optimizer state. Goes into `trainer.json`."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    validations_without_gain: int = 0
    bad_steps_in_a_row: int = 0
    validated: dict[int, dict[str, Any]] = field(default_factory=dict)  # step -> scores
    stream: dict[str, Any] | None = None  # of the block of a stream that training is in: place and digest

    @classmethod
    def read(cls, state: dict[str, Any]) -> Progress:
        return cls(**{**state, "validated": {int(step): scores for step, scores in state["validated"].items()}})


@dataclass
class Training:
    """What the loop works on, built by `train.py`."""

    recipe: Recipe
    folder: RunFolder
    attempt: int
    engine: Engine
    saver: Saver
    task: Task
    processor: Any
    schedule: torch.optim.lr_scheduler.LRScheduler
    loss: Loss
    blocks: Chunks
    validation: Examples | None
    batch: Batch
    steps: Steps
    metric: str
    direction: str  # max | min
    progress: Progress
    stop_requested: list[str]  # filled by a signal handler with the reason
    beat: Callable[[int, str], None]  # a sign of life: step and phase

    @property
    def accelerator(self) -> Accelerator:
        return self.engine.accelerator

    @property
    def model(self) -> nn.Module:
        """As wrapped for distribution."""
        return self.engine.model

    @cached_property
    def unfreeze_steps(self) -> dict[str, int]:
        """Weights that are not trained from the beginning."""
        return unfreeze_steps(self.engine.raw_model, self.recipe.tuning, self.steps.total, self.steps.steps_per_epoch)

    @cached_property
    def source(self) -> MicroBatches:
        """This rank's micro-batches."""
        rank = self.accelerator.process_index
        return MicroBatches(self.blocks, self.batch, rank, self.task, self.processor)


def run(t: Training) -> tuple[str, str]:
    """Train from `progress.step` to the end. Returns (state, reason): finished or stopped."""
    block: Chunk | None = None
    num_micro_batches = t.batch.world_size * t.batch.accumulation
    validate_at, save_at = set(t.steps.eval_points), set(t.steps.save_points)
    if t.progress.step in validate_at - set(t.progress.validated) and t.validation is not None:
        log.info("step %d: its validation was left unfinished, and comes first", t.progress.step)
        before_evaluation(t.engine.optimizer)
        broadcast_buffers(t.engine.raw_model)
        if stop := _judge(t):
            return "stopped", stop
    batches = load_micro_batches(t.source, t.progress.step + 1, t.steps.total, t.recipe.data.workers)
    meter = Meter(t)
    outcome = ("finished", "all steps done")
    while t.progress.step < t.steps.total:
        if _patience_is_over(t):
            outcome = ("finished", f"early stopping: {t.metric} was best at step {t.progress.best_step}")
            break
        step = t.progress.step + 1
        t.beat(step, "training")
        t.model.train()
        before_training(t.engine.optimizer)
        if block is not (now := t.blocks.at(step)):
            block, weights = now, weights_of(t.task, t.loss, now.examples)
            t.progress.stream = {"place": asdict(now.position), "digest": now.digest} if now.position else None
        slots = block.plan.micro_batches(step, num_micro_batches)
        divisors = torch.from_numpy(normalizers_of(weights[np.concatenate(slots)])).to(t.accelerator.device)
        forward_backward = partial(_forward_backward, t, step, divisors)
        totals = [forward_backward(turn, next(batches)) for turn in range(t.batch.accumulation)]
        loss, stop = _agree(t, (torch.stack(totals).double().sum(dim=0) / divisors).sum())
        lr = float(t.schedule.get_last_lr()[0])
        zero_frozen_gradients(t.engine.raw_model, t.unfreeze_steps, step)
        grad_norm = update(t, step, loss, totals, forward_backward)
        t.schedule.step()
        t.progress.step = step

        meter.step(loss, lr, grad_norm, len(np.concatenate(slots)))
        _note_saved(t, t.saver.poll())
        if step in save_at or stop:
            before_evaluation(t.engine.optimizer)
            broadcast_buffers(t.engine.raw_model)
            left = _judge(t) if step in validate_at and t.validation is not None else ""
            _save(t)
            stop = left or stop
        if stop and (step < t.steps.total or left):
            outcome = ("stopped", stop)
            break
    t.beat(t.progress.step, "saving")
    _note_saved(t, t.saver.finish())
    return outcome


def _forward_backward(t: Training, step: int, divisors: Tensor, turn: int, batch: MicroBatch) -> Tensor:
    """One of this rank's micro-batches: its gradient is added to the step's; (parts,) of its summed loss."""
    slot = t.accelerator.process_index * t.batch.accumulation + turn
    torch.manual_seed(micro_batch_seed(t.recipe.train.seed, step, slot))
    with t.engine.accumulate(last=turn == t.batch.accumulation - 1):
        totals = _loss_of(t, batch)
        # Ranks' gradients are averaged, so each rank's share of the sum counts world_size times.
        t.engine.backward((totals * (t.batch.world_size / divisors).to(totals.dtype)).sum())
    return totals.detach()


def _loss_of(t: Training, batch: MicroBatch) -> Tensor:
    """(parts,) of the loss summed over one micro-batch; 0 for one that has no examples of its own."""
    inputs, targets = send_to_device((batch.inputs, batch.targets), t.accelerator.device)
    with t.engine.autocast():
        outputs = t.task.forward(t.model, inputs)
    totals = t.loss.total(outputs, targets).reshape(-1)
    return totals if len(batch.indices) else totals * 0.0


def _agree(t: Training, loss_share: Tensor) -> tuple[float, str]:
    """One reduction a step: the global loss, and whether any rank was asked to stop."""
    if not t.stop_requested and t.accelerator.is_main_process and t.folder.stop_file.exists():
        t.stop_requested.append("asked to stop")
    both = torch.stack([loss_share, torch.full_like(loss_share, float(bool(t.stop_requested)))])
    loss, stops = t.accelerator.reduce(both, "sum").tolist()
    reason = t.stop_requested[0] if t.stop_requested else "another rank was asked to stop"
    return loss, reason if stops else ""


# ── validation ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _judge(t: Training) -> str:
    """Validate what training has come to. Returns why it was left unfinished, empty when it was not: the step is saved
    without its scores then, and they are the first thing that a resumed run makes."""
    try:
        _validate(t)
    except _Interrupted as left:
        return str(left)
    return ""


def _until_asked_to_stop(t: Training, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
    """All ranks have equally many batches, so they ask each other at the same ones. Raises _Interrupted on all of them."""
    for number, batch in enumerate(batches):
        if number and number % ASK_EVERY == 0:
            _, stop = _agree(t, torch.zeros((), dtype=torch.float64, device=t.accelerator.device))
            if stop:
                log.info("step %d: validation is left after %d of %d batches", t.progress.step, number, len(batches))
                raise _Interrupted(stop)
        yield batch


def _validate(t: Training) -> None:
    assert t.validation is not None
    t.beat(t.progress.step, "validating")
    world, rank = t.accelerator.num_processes, t.accelerator.process_index
    batches = length_sorted_batches(t.validation.lengths, t.recipe.evaluate.micro_batch)
    share = batches[rank::world]
    # Sharded weights are gathered by all ranks together, so a rank with one batch less repeats one, for nothing.
    idle = [batches[0]] * (-(-len(batches) // world) - len(share))
    mine = forward(
        t.model,
        t.task,
        t.loss,
        t.processor,
        t.validation,
        _until_asked_to_stop(t, [*share, *idle]),
        t.accelerator.device,
        t.engine.autocast(),
        t.engine.raw_model,
    )[: len(share)]
    # Ranks exchange (indices, predictions), so nothing is padded in and nothing has to be taken out again.
    predictions, totals = assemble(gather_object(mine), len(t.validation))
    check_predictions(t, predictions)
    scores = scores_of(t.task, t.loss, predictions, totals, t.validation, t.processor)
    scores = {name: value for name, value in scores.items() if not isinstance(value, (list, dict))}  # can be large
    progress = t.progress
    progress.validated[progress.step] = scores
    score = scores[t.metric]
    stopping = t.recipe.train.early_stopping
    gained = better(score, progress.best_score, t.direction, stopping.min_delta if stopping else 0.0)
    progress.validations_without_gain = 0 if gained else progress.validations_without_gain + 1
    if better(score, progress.best_score, t.direction):  # the best is kept, even when it is too small a gain to go on
        progress.best_step, progress.best_score = progress.step, score
    record(t, "validation", scores)
    defined = {f"validation/{name}": value for name, value in scores.items() if value is not None}
    t.accelerator.log(defined, step=progress.step)
    if t.accelerator.is_main_process:
        best = " (best)" if progress.best_step == progress.step else f" (best at step {progress.best_step})"
        log.info(
            "step %d: validation loss %s, %s %s%s",
            progress.step,
            _number(scores["loss"]),
            t.metric,
            _number(score),
            best,
        )


def _patience_is_over(t: Training) -> bool:
    stopping = t.recipe.train.early_stopping
    return stopping is not None and t.progress.validations_without_gain >= stopping.patience


# ── saving ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def _save(t: Training) -> None:
    """Copy what is to be saved; unless the recipe says otherwise, the files are written while training goes on."""
    t.beat(t.progress.step, "saving")
    _note_saved(t, t.saver.finish())
    started = time.monotonic()
    snapshot = Snapshot.take(t)
    check_weights(t, snapshot.weights)
    t.saver.save(t.progress.step, snapshot.write)
    record(t, "snapshot", {"seconds": round(time.monotonic() - started, 3)})
    if not t.recipe.train.async_save:
        _note_saved(t, t.saver.finish())


def _note_saved(t: Training, saved: Saved | None) -> None:
    if saved is None:
        return
    record(t, "checkpoint", {"seconds": round(saved.seconds, 3)}, saved.step)
    log.info("step %d: checkpoint saved in %.1f s", saved.step, saved.seconds)
    if t.recipe.train.keep_last is not None:
        _prune(t, t.recipe.train.keep_last)


def _prune(t: Training, keep_last: int) -> None:
    """Never the best, never one that no validation and no sweep has judged yet."""
    judged = evaluated_steps(t.folder) | t.progress.validated
    there = [checkpoint.step for checkpoint in ckpt.published(t.folder)]
    # The best of those on disk: a better one may still be on its way there, and never arrive.
    best: tuple[int | None, float | None] = (None, None)
    for step in there:
        score = judged.get(step, {}).get(t.metric)
        if better(score, best[1], t.direction):
            best = (step, score)
    keep = {*(step for step in there if step not in judged), *t.steps.keep_points, best[0]}
    for step in ckpt.prune(t.folder, keep_last, keep):
        log.info("step %d: old checkpoint deleted (train.keep_last is %d)", step, keep_last)


def evaluated_steps(folder: RunFolder) -> dict[int, dict[str, Any]]:
    """Step -> its scores on validation, for those that the sweep has scored."""
    records = [read_json(path) for path in folder.evaluation.glob("step-*.validation.json")]
    return {record["step"]: record["scores"] for record in records if record}


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
