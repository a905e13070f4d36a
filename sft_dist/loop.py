"""The training loop: for each step the batch, the loss, backward, step, log, maybe validate and save.

One optimizer step is one global batch. Its loss is a sum over examples divided by the weight of the whole global batch
(`losses.py`), so the gradient does not depend on how processes and accumulation share the batch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_dist import checkpoint as ckpt
from sft_dist.attempt import append_line
from sft_dist.batches import BatchPlan, slot_seed
from sft_dist.inference import assemble, better, forward, length_sorted_batches, scores_of
from sft_dist.losses import SumLoss
from sft_dist.optim import schedule_state, trained_names
from sft_dist.recipe.arithmetic import Batch, Steps
from sft_dist.recipe.run_folder import RunFolder, write_json
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import Examples, Task

if TYPE_CHECKING:
    from peft import PeftModel  # takes seconds to import, and only adapters need it

log = logging.getLogger("sft_dist")


class TrainingError(RuntimeError):
    """Training cannot go on: a loss that is no number."""


@dataclass
class Progress:
    """Everything a resumed run must know besides weights and optimizer state. Goes into `trainer.json`."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    validations_without_gain: int = 0
    validated: dict[int, dict[str, Any]] = field(default_factory=dict)  # step -> scores

    @classmethod
    def read(cls, state: dict[str, Any]) -> Progress:
        known = {**state["progress"], "validated": {int(k): v for k, v in state["progress"]["validated"].items()}}
        return cls(**known)


@dataclass
class Training:
    """What the loop works on, built by `train.py`."""

    recipe: Recipe
    folder: RunFolder
    attempt: int
    accelerator: Accelerator
    task: Task
    tokenizer: PreTrainedTokenizerBase
    model: nn.Module  # as prepared: may be wrapped for distribution
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    loss: SumLoss
    train: Examples
    validation: Examples | None
    batch: Batch
    steps: Steps
    metric: str
    direction: str  # max | min
    progress: Progress
    stop_requested: list[str]  # filled by a signal handler with the reason
    beat: Callable[[int, str], None]  # a sign of life: step and phase

    @property
    def raw_model(self) -> PreTrainedModel | PeftModel:
        return self.accelerator.unwrap_model(self.model)


def run(t: Training) -> tuple[str, str]:
    """Train from `progress.step` to the end. Returns (state, reason): finished or stopped."""
    plan = BatchPlan(t.train.lengths, t.recipe.train.seed, t.batch.global_batch, t.recipe.train.batching)
    weights = t.loss.weights(t.train.targets)
    num_slots = t.batch.world_size * t.batch.accumulation
    first_slot = t.accelerator.process_index * t.batch.accumulation
    validate_at, save_at = set(t.steps.eval_points), set(t.steps.save_points)
    meter = Meter(t)
    while t.progress.step < t.steps.total:
        if _patience_is_over(t):
            return "finished", f"early stopping: {t.metric} was best at step {t.progress.best_step}"
        step = t.progress.step + 1
        t.beat(step, "training")
        t.model.train()
        slots = plan.slots(step, num_slots)
        divisor = float(weights[np.concatenate(slots)].sum())
        loss_sum = torch.zeros((), device=t.accelerator.device, dtype=torch.float64)
        for turn in range(t.batch.accumulation):
            number = first_slot + turn
            last = turn == t.batch.accumulation - 1
            torch.manual_seed(slot_seed(t.recipe.train.seed, step, number))
            with contextlib.nullcontext() if last else t.accelerator.no_sync(t.model):
                total = _slot_loss(t, slots[number], slots)
                # Ranks' gradients are averaged, so each rank's share of the sum counts world_size times.
                t.accelerator.backward(total * (t.batch.world_size / divisor))
            loss_sum += total.detach()
        loss, stop = _agree(t, loss_sum / divisor)
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss of step {step} is {loss}; examples {_ids(t, slots[first_slot])[:8]} on this rank"
            )
        grad_norm = _clip(t)
        t.optimizer.step()
        lr = float(t.schedule.get_last_lr()[0])
        t.schedule.step()
        t.optimizer.zero_grad()
        t.progress.step = step

        meter.step(loss, lr, grad_norm, len(np.concatenate(slots)))
        if step in validate_at and t.validation is not None:
            _validate(t)
        if step in save_at or stop:
            _save(t)
        if stop and step < t.steps.total:
            return "stopped", stop
    return "finished", "all steps done"


def _slot_loss(t: Training, slot: np.ndarray, slots: list[np.ndarray]) -> Tensor:
    """Loss summed over one micro-batch. A rank without examples (short last batch) still takes part, with weight 0."""
    empty = len(slot) == 0
    indices = next(other for other in slots if len(other))[:1] if empty else slot
    inputs, targets = t.task.collate(t.train, indices, t.tokenizer)
    device = t.accelerator.device
    logits = t.task.logits(t.model, {name: value.to(device) for name, value in inputs.items()})
    total = t.loss.total(logits, targets.to(device))
    return total * 0.0 if empty else total


def _agree(t: Training, loss_share: Tensor) -> tuple[float, str]:
    """One reduction a step: the global loss, and whether any rank was asked to stop."""
    if not t.stop_requested and t.accelerator.is_main_process and t.folder.stop_file.exists():
        t.stop_requested.append("asked to stop")
    both = torch.stack([loss_share, torch.full_like(loss_share, float(bool(t.stop_requested)))])
    loss, stops = t.accelerator.reduce(both, "sum").tolist()
    reason = t.stop_requested[0] if t.stop_requested else "another rank was asked to stop"
    return loss, reason if stops else ""


def _clip(t: Training) -> float:
    """Clip, and the gradient norm before clipping."""
    trained = [parameter for parameter in t.model.parameters() if parameter.requires_grad]
    limit = t.recipe.train.clip_norm
    norm = t.accelerator.clip_grad_norm_(trained, float("inf") if limit is None else limit)
    return float(norm)


def _ids(t: Training, slot: np.ndarray) -> list[int]:
    return t.train.ids[slot].tolist()


# ── validation ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _validate(t: Training) -> None:
    assert t.validation is not None
    t.beat(t.progress.step, "validating")
    world, rank = t.accelerator.num_processes, t.accelerator.process_index
    batches = length_sorted_batches(t.validation.lengths, t.recipe.evaluate.micro_batch)[rank::world]
    # The bare model: ranks may have different numbers of batches, which a distributed wrapper need not allow.
    mine = forward(
        t.raw_model, t.task, t.tokenizer, t.validation, batches, t.accelerator.device, t.recipe.train.precision
    )
    # Ranks exchange (indices, logits), so nothing is padded in and nothing has to be taken out again.
    logits = assemble(gather_object(mine), len(t.validation))
    scores = scores_of(t.task, t.loss, logits, t.validation)
    scores = {name: value for name, value in scores.items() if not isinstance(value, list)}  # confusion can be large
    progress = t.progress
    progress.validated[progress.step] = scores
    score = scores[t.metric]
    stopping = t.recipe.train.early_stopping
    gained = better(score, progress.best_score, t.direction, stopping.min_delta if stopping else 0.0)
    progress.validations_without_gain = 0 if gained else progress.validations_without_gain + 1
    if better(score, progress.best_score, t.direction):  # the best is kept, even when it is too small a gain to go on
        progress.best_step, progress.best_score = progress.step, score
    _record(t, "validation", scores)
    defined = {f"validation/{name}": value for name, value in scores.items() if value is not None}
    t.accelerator.log(defined, step=progress.step)
    if t.accelerator.is_main_process:
        best = " (best)" if progress.best_step == progress.step else f" (best at step {progress.best_step})"
        log.info(
            "step %d: validation loss %.4f, %s %s%s", progress.step, scores["loss"], t.metric, _number(score), best
        )


def _patience_is_over(t: Training) -> bool:
    stopping = t.recipe.train.early_stopping
    return stopping is not None and t.progress.validations_without_gain >= stopping.patience


# ── saving ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def _save(t: Training) -> None:
    """Rank 0 publishes the checkpoint; the others wait, so that no rank is ever a checkpoint ahead."""
    t.beat(t.progress.step, "saving")
    if t.accelerator.is_main_process:
        started = time.monotonic()
        ckpt.publish(t.folder, t.progress.step, lambda aside: write_checkpoint(t, aside))
        seconds = time.monotonic() - started
        _record(t, "checkpoint", {"seconds": round(seconds, 3)})
        log.info("step %d: checkpoint saved in %.1f s", t.progress.step, seconds)
        if t.recipe.train.keep_last is not None:
            _prune(t, t.recipe.train.keep_last)
    t.accelerator.wait_for_everyone()


def write_checkpoint(t: Training, aside: Path) -> None:
    t.raw_model.save_pretrained(aside / "model")
    t.tokenizer.save_pretrained(aside / "model")
    t.raw_model.config.save_pretrained(aside / "model")  # an adapter's folder has no config, and class names live there
    optimizer = getattr(t.optimizer, "optimizer", t.optimizer)
    ckpt.save_optimizer(optimizer, trained_names(t.raw_model), aside / "optimizer.safetensors")
    write_json(
        aside / "trainer.json",
        {"progress": vars(t.progress), "schedule": schedule_state(t.schedule), "labels": t.task.labels},
    )


def _prune(t: Training, keep_last: int) -> None:
    """Never the best, never one that no validation and no sweep has judged yet."""
    unjudged = {c.step for c in ckpt.published(t.folder)} - set(t.progress.validated) - evaluated_steps(t.folder)
    keep = unjudged | ({t.progress.best_step} if t.progress.best_step is not None else set())
    for step in ckpt.prune(t.folder, keep_last, keep):
        log.info("step %d: old checkpoint deleted (train.keep_last is %d)", step, keep_last)


def evaluated_steps(folder: RunFolder) -> set[int]:
    """Steps that the sweep has scored on validation."""
    return {
        int(path.name.split(".")[0].removeprefix("step-")) for path in folder.evaluation.glob("step-*.validation.json")
    }


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class Meter:
    """Speed, and a line of the log every `log_every` steps."""

    def __init__(self, t: Training) -> None:
        self.t = t
        self.started = self.since = time.monotonic()
        self.first_step = t.progress.step
        self.examples = 0

    def step(self, loss: float, lr: float, grad_norm: float, examples: int) -> None:
        t, step = self.t, self.t.progress.step
        self.examples += examples
        if step % t.recipe.train.log_every and step != t.steps.total and step != self.first_step + 1:
            return
        now = time.monotonic()
        rate = self.examples / max(now - self.since, 1e-9)
        left = (now - self.started) / (step - self.first_step) * (t.steps.total - step)
        self.since, self.examples = now, 0
        values = {
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "examples_per_s": round(rate, 2),
            "eta_s": round(left, 1),
        }
        _record(t, "train", values)
        t.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)
        if t.accelerator.is_main_process:
            log.info(
                "step %d/%d  loss %.4f  lr %.2e  %.1f examples/s  %s left",
                step,
                t.steps.total,
                loss,
                lr,
                rate,
                _clock(left),
            )


def _record(t: Training, kind: str, values: dict[str, Any]) -> None:
    if t.accelerator.is_main_process:
        step = t.progress.step
        line = {
            "kind": kind,
            "attempt": t.attempt,
            "step": step,
            "total_steps": t.steps.total,
            "epoch": round(step / t.steps.steps_per_epoch, 4),
            "time": round(time.time(), 3),
            **values,
        }
        append_line(t.folder.metrics_file, json.dumps(line))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
