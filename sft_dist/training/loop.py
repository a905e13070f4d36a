"""The training loop. Each optimizer step: batch, forward, loss, backward, clip, step, schedule, log, validate, save.

One optimizer step is one global batch. Its loss is a sum over examples divided by the normalizer of the whole global batch
(`losses/`), so the gradient does not depend on how ranks and accumulation divide the batch.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from sft_dist.batches.chunks import Chunk
from sft_dist.batches.loader import MicroBatch, load_micro_batches
from sft_dist.batches.plan import micro_batch_seed
from sft_dist.engines.base import NonFiniteGradient
from sft_dist.evaluation.inference import normalizers_of, weights_of
from sft_dist.run import attempt as at
from sft_dist.training.batch_norms import BatchNorms
from sft_dist.training.metrics_logger import MetricsLogger
from sft_dist.training.nonfinite import describe_bad_gradient, describe_bad_loss, handle_bad_step
from sft_dist.training.saving import log_saved, save
from sft_dist.training.state import Training
from sft_dist.training.stopping import reduce_loss_and_stop
from sft_dist.training.validation import patience_is_over, use_evaluation_weights, validate
from sft_dist.tuning import zero_frozen_gradients
from sft_dist.tuning.optimizers import before_training

log = logging.getLogger("sft_dist")


def run(t: Training) -> tuple[str, str]:
    """Trains from `progress.step` to the end, or to the step at which this attempt pauses. Returns (state, reason): finished or
    stopped."""
    last_step = at.last_step(t.steps.total)
    chunk: Chunk | None = None
    num_micro_batches = t.batch.world_size * t.batch.accumulation
    validate_at, save_at = set(t.steps.eval_points), set(t.steps.save_points)
    if t.progress.step in validate_at - set(t.progress.validated) and t.validation is not None:
        log.info("step %d: its validation was interrupted; running it first", t.progress.step)
        use_evaluation_weights(t)
        if reason := validate(t):
            return "stopped", reason
    micro_batches = load_micro_batches(t.source, t.progress.step + 1, last_step, t.recipe.data.workers)
    metrics = MetricsLogger(t.records, t.accelerator, t.recipe.train.log_every)
    micro_batches = metrics.time_loading(micro_batches)
    batch_norms = BatchNorms(t.engine.raw_model)
    outcome = (
        ("finished", "all steps done") if last_step == t.steps.total else ("stopped", f"paused at step {last_step}")
    )
    while t.progress.step < last_step:
        if patience_is_over(t):
            outcome = ("finished", f"early stopping: {t.metric} was best at step {t.progress.best_step}")
            break
        step = t.progress.step + 1
        t.heartbeat(step, "training")
        t.model.train()
        before_training(t.engine.optimizer)

        # Batch: which examples every rank trains on, and what their losses are divided by.
        if chunk is not (current := t.chunks.at(step)):
            chunk, loss_weights = current, weights_of(t.task, t.loss, current.examples)
            position = current.position
            t.progress.stream = {"place": asdict(position), "digest": current.digest} if position else None
        examples = np.concatenate(chunk.plan.micro_batches(step, num_micro_batches))
        normalizers = torch.from_numpy(normalizers_of(loss_weights[examples])).to(t.accelerator.device)

        # Forward, loss and backward of each of this rank's micro-batches.
        forward_backward = partial(_forward_backward, t, step, normalizers)
        loss_sums = [forward_backward(micro_step, next(micro_batches)) for micro_step in range(t.batch.accumulation)]
        local_loss = (torch.stack(loss_sums).double().sum(dim=0) / normalizers).sum()
        loss, stop = reduce_loss_and_stop(t, local_loss)

        # Clip and optimizer step, unless loss or gradient is NaN or infinite.
        zero_frozen_gradients(t.engine.raw_model, t.unfreeze_steps, step)
        grad_norm, problem = math.nan, describe_bad_loss(t, step, loss, loss_sums)
        if not problem:
            try:
                grad_norm = t.engine.step(t.recipe.train.clip_norm)
            except NonFiniteGradient as error:
                problem = describe_bad_gradient(t, step, loss, error, forward_backward)
        handle_bad_step(t, step, loss, grad_norm, problem)
        batch_norms.end_step(t.accelerator, skipped=not math.isfinite(grad_norm))

        # Schedule and log.
        lr = float(t.schedule.get_last_lr()[0])
        t.schedule.step()
        t.progress.step = step
        metrics.log_step(loss, lr, grad_norm, len(examples))
        log_saved(t, t.saver.poll())

        # Validate and save.
        interrupted = ""
        if step in save_at or step == last_step or stop:
            use_evaluation_weights(t)
            if step in validate_at and t.validation is not None:
                interrupted = validate(t)
            save(t)
            stop = interrupted or stop
        if stop and (step < t.steps.total or interrupted):
            outcome = ("stopped", stop)
            break
    t.heartbeat(t.progress.step, "saving")
    log_saved(t, t.saver.finish())
    return outcome


def _forward_backward(t: Training, step: int, normalizers: Tensor, micro_step: int, batch: MicroBatch) -> Tensor:
    """Adds the gradient of one of this rank's micro-batches to the step's. Returns its (parts,) of the summed loss."""
    index = t.accelerator.process_index * t.batch.accumulation + micro_step
    torch.manual_seed(micro_batch_seed(t.recipe.train.seed, step, index))
    with t.engine.accumulate(last=micro_step == t.batch.accumulation - 1):
        loss_sums = _loss_sums(t, batch)
        # Ranks' gradients are averaged, so each rank's share of the sum counts world_size times.
        t.engine.backward((loss_sums * (t.batch.world_size / normalizers).to(loss_sums.dtype)).sum())
    return loss_sums.detach()


def _loss_sums(t: Training, batch: MicroBatch) -> Tensor:
    """Returns (parts,) of the loss summed over one micro-batch; 0 for one without examples of its own."""
    inputs, targets = send_to_device((batch.inputs, batch.targets), t.accelerator.device)
    with t.engine.autocast():
        outputs = t.task.forward(t.model, inputs)
    loss_sums = t.loss.total(outputs, targets).reshape(-1)
    return loss_sums if len(batch.indices) else loss_sums * 0.0
