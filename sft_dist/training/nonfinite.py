"""Steps whose loss or gradient is NaN or infinite, or above `train.max_loss`: training stops, or the step is skipped.

Either way nothing of it gets into a checkpoint. All ranks see the same loss and norm, so all decide alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from torch import Tensor, nn

from sft_dist.batches.loader import MicroBatch
from sft_dist.engines.base import NonFiniteGradient
from sft_dist.evaluation.inference import is_not_finite
from sft_dist.run.failures import TrainingError
from sft_dist.training.state import Training

log = logging.getLogger("sft_dist")

# While it searches for its loss scale, fp16 skips up to 17 steps in a row (65,536 down to 1); more is never part of a sound run.
MAX_BAD_STEPS_IN_A_ROW = 20
MAX_ROWS_NAMED = 32  # rows


def describe_bad_loss(t: Training, step: int, loss: float, loss_sums: list[Tensor]) -> str:
    """Returns what is wrong with the loss of a step; empty when it is sound. `loss_sums`: (parts,) of the loss of each of
    this rank's micro-batches. Every rank must call it."""
    problem = _bad_loss(t, loss)
    return f"the loss of step {step} is {problem}; {_worst_loss(t, step, loss_sums)}" if problem else ""


def describe_bad_gradient(
    t: Training,
    step: int,
    loss: float,
    error: NonFiniteGradient,
    forward_backward: Callable[[int, MicroBatch], Tensor],  # of one micro-batch
) -> str:
    """Returns where the NaN or infinity in the gradient of a step comes from. Every rank must call it."""
    source = _trace_gradient(t, step, forward_backward)
    return f"step {step}: {error} although the loss is {loss:g}; {source}"


def handle_bad_step(t: Training, step: int, loss: float, grad_norm: float, problem: str) -> None:
    """Skips the step, whose gradient norm is NaN or infinite, or ends the training. Does nothing after a sound step.

    Raises TrainingError. Every rank must call it.
    """
    if math.isfinite(grad_norm):
        t.progress.bad_steps_in_a_row = 0
        return
    t.progress.bad_steps_in_a_row += 1
    if problem and t.recipe.train.on_bad_loss == "stop":
        raise TrainingError(problem)
    if t.progress.bad_steps_in_a_row >= MAX_BAD_STEPS_IN_A_ROW:
        last = problem or "the gradient overflows at any loss scale"
        raise TrainingError(f"the last {MAX_BAD_STEPS_IN_A_ROW} steps, up to step {step}, were all skipped; {last}")
    if problem:
        t.engine.discard_gradients()
        t.records.write("skipped", {"loss": loss, "why": problem}, step)
        log.warning("%s; the step is skipped", problem)


def _bad_loss(t: Training, loss: float) -> str:
    limit = t.recipe.train.max_loss
    if not math.isfinite(loss):
        return f"{loss:g}"
    return f"{loss:g}, above train.max_loss {limit:g}" if limit is not None and loss > limit else ""


def _worst_loss(t: Training, step: int, totals: list[Tensor]) -> str:
    micro_batches = t.source.indices(step)
    means = [
        float(total.sum()) / max(len(micro_batch), 1) for total, micro_batch in zip(totals, micro_batches, strict=True)
    ]
    per_micro_batch = _gather_per_micro_batch(t, step, means, micro_batches)
    mean, rank, rows = max(per_micro_batch, key=lambda entry: entry[0] if math.isfinite(entry[0]) else math.inf)
    worst = f"rank {rank} has {mean:g} an example on rows {_format_rows(rows)}"
    if len(per_micro_batch) > 1 and not any(math.isfinite(mean) for mean, _, _ in per_micro_batch):
        return f"{worst}, and none of the {len(per_micro_batch)} micro-batches has a finite one: training has diverged; lower train.lr"
    return f"{worst}, the worst of {len(per_micro_batch)} micro-batches"


def _trace_gradient(t: Training, step: int, forward_backward: Callable[[int, MicroBatch], Tensor]) -> str:
    """Re-runs the micro-batches with hooks on every layer, which see gradients before they are summed and exchanged."""
    micro_batches = t.source.indices(step)
    bad = [False] * len(micro_batches)
    micro_step = 0

    def check_gradient(module: nn.Module, into: Any, out_of: tuple[Tensor | None, ...]) -> None:
        bad[micro_step] |= any(gradient is not None and not gradient.isfinite().all() for gradient in out_of)

    leaves = [module for module in t.engine.raw_model.modules() if not any(module.children())]
    hooks = [module.register_full_backward_hook(check_gradient) for module in leaves]
    try:
        for micro_step in range(len(micro_batches)):  # `check_gradient` reads it
            forward_backward(micro_step, t.source.at(step, micro_step))
    except RuntimeError as error:  # some layers cannot be watched
        return f"its source could not be traced ({error})"
    finally:
        for hook in hooks:
            hook.remove()
    per_micro_batch = _gather_per_micro_batch(t, step, bad, micro_batches)
    guilty = [(rank, rows) for is_bad, rank, rows in per_micro_batch if is_bad]
    if not guilty:
        return f"none of the {len(per_micro_batch)} micro-batches produces it on its own"
    rank, rows = guilty[0]
    return (
        f"it comes from rank {rank}, rows {_format_rows(rows)}, {len(guilty)} of {len(per_micro_batch)} micro-batches"
    )


def _gather_per_micro_batch(
    t: Training, step: int, values: list[Any], micro_batches: list[np.ndarray]
) -> list[tuple[Any, int, list[int]]]:
    """Returns (value, rank, rows) of each micro-batch of the step that has examples."""
    rank = t.accelerator.process_index
    ids = t.chunks.at(step).examples.ids
    values_here = [
        (value, rank, ids[micro_batch].tolist())
        for value, micro_batch in zip(values, micro_batches, strict=True)
        if len(micro_batch)
    ]
    return gather_object(values_here)


def _format_rows(rows: list[int]) -> str:
    return f"{rows[:MAX_ROWS_NAMED]}{' and more' if len(rows) > MAX_ROWS_NAMED else ''}"


def check_predictions(t: Training, predictions: list[Any]) -> None:
    """Raises TrainingError for NaN or infinite predictions, before they are scored."""
    assert t.validation is not None
    bad = [
        row for row, prediction in zip(t.validation.ids.tolist(), predictions, strict=True) if is_not_finite(prediction)
    ]
    if bad:
        raise TrainingError(
            f"after step {t.progress.step} the predictions for {len(bad)} of {len(predictions)} validation rows are NaN or "
            f"infinite: rows {_format_rows(bad)}"
        )


def check_weights(t: Training, weights: dict[str, Tensor] | None) -> None:
    """Raises TrainingError on every rank for NaN or infinite weights, before a save: the loss is known before the weights
    change, and a finite loss does not make the running statistics of batch norms finite.

    A sum shows any NaN or infinity, and takes a twentieth of the time of `isfinite`.
    """
    trained = {name for name, parameter in t.engine.raw_model.named_parameters() if parameter.requires_grad}
    bad = [name for name, value in (weights or {}).items() if _is_bad(value, name in trained)]
    if bad := gather_object([bad])[0]:
        remainder = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise TrainingError(
            f"step {t.progress.step} or earlier produced NaN or infinity in {bad[0]}{remainder}; the step is not saved; lower "
            "train.lr or look for NaN in the data"
        )


def _is_bad(value: Tensor, is_trained: bool) -> bool:
    """Untrained tensors, such as masks, may be infinite from the beginning."""
    if not value.is_floating_point():
        return False
    total = value.sum().item()
    return not math.isfinite(total) if is_trained else math.isnan(total)
