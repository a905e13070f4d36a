"""A step whose loss or gradient is no number, or above `train.max_loss`: training stops, or the step is left out.

Either way nothing of it gets into a checkpoint. All ranks see the same loss and norm, so all decide alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object
from torch import Tensor, nn

from sft_dist.engines.base import NonFiniteGradient
from sft_dist.evaluation.inference import is_not_finite
from sft_dist.run.failures import TrainingError
from sft_dist.training.metrics_logger import record

if TYPE_CHECKING:
    from sft_dist.batches.loader import MicroBatch
    from sft_dist.training.loop import Training

log = logging.getLogger("sft_dist")

# Looking for its loss scale, fp16 leaves out up to 17 steps in a row (65,536 down to 1); more is never part of a sound run.
MAX_BAD_STEPS_IN_A_ROW = 20
MOST_NAMED = 32  # rows


def update(
    t: Training,
    step: int,
    loss: float,
    totals: list[Tensor],  # (parts,) of the loss of each of this rank's micro-batches
    forward_backward: Callable[[int, MicroBatch], Tensor],  # of one of them
) -> float:
    """The optimizer's step. Returns the gradient norm before clipping, NaN when the step was left out.

    Raises TrainingError. Every rank must call it.
    """
    norm, problem = math.nan, _bad_loss(t, loss)
    if problem:
        problem = f"the loss of step {step} is {problem}; {_whose_loss(t, step, totals)}"
    else:
        try:
            norm = t.engine.step(t.recipe.train.clip_norm)
        except NonFiniteGradient as error:
            whose = _whose_gradient(t, step, forward_backward)
            problem = f"the gradient of step {step} is bad ({error}) though its loss is {loss:g}; {whose}"
    if math.isfinite(norm):
        t.progress.bad_steps_in_a_row = 0
        return norm
    t.progress.bad_steps_in_a_row += 1
    if problem and t.recipe.train.on_bad_loss == "stop":
        raise TrainingError(problem)
    if t.progress.bad_steps_in_a_row >= MAX_BAD_STEPS_IN_A_ROW:
        last = problem or "the gradient overflows at any loss scale"
        raise TrainingError(f"the last {MAX_BAD_STEPS_IN_A_ROW} steps up to step {step} were all left out; {last}")
    if problem:
        t.engine.discard_gradients()
        record(t, "skipped", {"loss": loss, "why": problem}, step)
        log.warning("%s; the step is left out", problem)
    return norm


def _bad_loss(t: Training, loss: float) -> str:
    limit = t.recipe.train.max_loss
    if not math.isfinite(loss):
        return f"{loss:g}"
    return f"{loss:g}, above train.max_loss {limit:g}" if limit is not None and loss > limit else ""


def _whose_loss(t: Training, step: int, totals: list[Tensor]) -> str:
    slots = t.source.indices(step)
    means = [float(total.sum()) / max(len(slot), 1) for total, slot in zip(totals, slots, strict=True)]
    every = _of_all_ranks(t, step, means, slots)
    mean, rank, rows = max(every, key=lambda one: one[0] if math.isfinite(one[0]) else math.inf)
    worst = f"rank {rank} has {mean:g} an example on rows {_shown(rows)}"
    if len(every) > 1 and not any(math.isfinite(mean) for mean, _, _ in every):
        return f"{worst}, and none of the {len(every)} micro-batches is better: the weights are no longer sound, see train.lr"
    return f"{worst}, the worst of {len(every)} micro-batches"


def _whose_gradient(t: Training, step: int, forward_backward: Callable[[int, MicroBatch], Tensor]) -> str:
    """Runs the micro-batches again, and watches what goes back through the layers before it is added up and exchanged."""
    slots = t.source.indices(step)
    bad = [False] * len(slots)
    turn = 0

    def look(module: nn.Module, into: Any, out_of: tuple[Tensor | None, ...]) -> None:
        bad[turn] |= any(gradient is not None and not gradient.isfinite().all() for gradient in out_of)

    leaves = [module for module in t.engine.raw_model.modules() if not any(module.children())]
    hooks = [module.register_full_backward_hook(look) for module in leaves]
    try:
        for turn in range(len(slots)):  # `look` reads it
            forward_backward(turn, t.source.at(step, turn))
    except RuntimeError as error:  # some layers cannot be watched
        return f"it could not be found out where it comes from ({error})"
    finally:
        for hook in hooks:
            hook.remove()
    every = _of_all_ranks(t, step, bad, slots)
    guilty = [(rank, rows) for is_bad, rank, rows in every if is_bad]
    if not guilty:
        return f"it comes from none of the {len(every)} micro-batches by itself"
    rank, rows = guilty[0]
    return f"it comes from rank {rank}, rows {_shown(rows)}, {len(guilty)} of {len(every)} micro-batches"


def _of_all_ranks(
    t: Training, step: int, values: list[Any], slots: list[np.ndarray]
) -> list[tuple[Any, int, list[int]]]:
    """(value, rank, rows) of each micro-batch of the step that has examples."""
    rank = t.accelerator.process_index
    ids = t.blocks.at(step).examples.ids
    mine = [(value, rank, ids[slot].tolist()) for value, slot in zip(values, slots, strict=True) if len(slot)]
    return gather_object(mine)


def _shown(rows: list[int]) -> str:
    return f"{rows[:MOST_NAMED]}{' and more' if len(rows) > MOST_NAMED else ''}"


def check_predictions(t: Training, predictions: list[Any]) -> None:
    """Before scores are made of them. Raises TrainingError."""
    assert t.validation is not None
    bad = [row for row, one in zip(t.validation.ids.tolist(), predictions, strict=True) if is_not_finite(one)]
    if bad:
        raise TrainingError(
            f"after step {t.progress.step} the predictions for {len(bad)} of {len(predictions)} validation rows are no "
            f"numbers: rows {_shown(bad)}"
        )


def check_weights(t: Training, weights: dict[str, Tensor] | None) -> None:
    """Before a save: the loss is known before the weights change, and the running statistics of batch norms take in what a
    batch holds, also one that is left out. Raises TrainingError on every rank.

    A sum shows any NaN or infinity, and takes a twentieth of the time of `isfinite`.
    """
    trained = {name for name, parameter in t.engine.raw_model.named_parameters() if parameter.requires_grad}
    bad = [name for name, value in (weights or {}).items() if _is_bad(value, name in trained)]
    if bad := gather_object([bad])[0]:
        raise TrainingError(
            f"step {t.progress.step} or one before has made {len(bad)} weights or running statistics no numbers, "
            f"{bad[0]} first, and is not saved; see train.lr, and data for what is no number"
        )


def _is_bad(value: Tensor, is_trained: bool) -> bool:
    """What is not trained may be infinite from the beginning, such as a mask."""
    if not value.is_floating_point():
        return False
    total = value.sum().item()
    return not math.isfinite(total) if is_trained else math.isnan(total)
