"""A step whose loss or gradient is no number, or above `train.max_loss`: training stops, or the step is left out.

Either way nothing of it gets into a checkpoint. All ranks see the same loss and norm, so all decide alike.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
from accelerate.utils import gather_object
from torch import Tensor

from sft_dist.engines.base import BadGradient
from sft_dist.failures import TrainingError
from sft_dist.meter import record

if TYPE_CHECKING:
    from sft_dist.loop import Training

log = logging.getLogger("sft_dist")

# Looking for its loss scale, fp16 leaves out up to 17 steps in a row (65,536 down to 1); more is never part of a sound run.
MOST_IN_A_ROW = 20
MOST_NAMED = 32  # rows


def update(t: Training, step: int, loss: float, totals: list[Tensor], slots: list[np.ndarray]) -> float:
    """The optimizer's step. Returns the gradient norm before clipping, NaN when the step was left out.

    `totals`: the losses of this rank's micro-batches, `slots`: their examples. Raises TrainingError. Every rank calls it.
    """
    norm, problem = math.nan, _bad_loss(t, loss)
    if problem:
        problem = f"the loss of step {step} is {problem}; {_blame(t, totals, slots)}"
    else:
        try:
            norm = t.engine.step(t.recipe.train.clip_norm)
        except BadGradient as error:
            problem = (
                f"the gradient of step {step} is bad ({error}) though its loss is {loss:g}; {_blame(t, totals, slots)}"
            )
    if math.isfinite(norm):
        t.progress.bad_steps_in_a_row = 0
        return norm
    t.progress.bad_steps_in_a_row += 1
    if problem and t.recipe.train.on_bad_loss == "stop":
        raise TrainingError(problem)
    if t.progress.bad_steps_in_a_row >= MOST_IN_A_ROW:
        last = problem or "the gradient overflows at any loss scale"
        raise TrainingError(f"the last {MOST_IN_A_ROW} steps up to step {step} were all left out; {last}")
    if problem:
        t.engine.drop_gradients()
        record(t, "skipped", {"loss": loss, "why": problem}, step)
        log.warning("%s; the step is left out", problem)
    return norm


def _bad_loss(t: Training, loss: float) -> str:
    limit = t.recipe.train.max_loss
    if not math.isfinite(loss):
        return f"{loss:g}"
    return f"{loss:g}, above train.max_loss {limit:g}" if limit is not None and loss > limit else ""


def _blame(t: Training, totals: list[Tensor], slots: list[np.ndarray]) -> str:
    """The worst micro-batch of all ranks: whose it is and which rows are in it."""
    mine = [
        (float(total) / len(slot), t.accelerator.process_index, t.train.ids[slot].tolist())
        for total, slot in zip(totals, slots, strict=True)
        if len(slot)
    ]
    every = gather_object(mine)
    mean, rank, rows = max(every, key=lambda one: one[0] if math.isfinite(one[0]) else math.inf)
    more = " and more" if len(rows) > MOST_NAMED else ""
    worst = f"rank {rank} has {mean:g} an example on rows {rows[:MOST_NAMED]}{more}"
    if len(every) > 1 and not any(math.isfinite(one[0]) for one in every):
        return f"{worst}, and none of the {len(every)} micro-batches is better: the weights are no longer sound, see train.lr"
    return f"{worst}, the worst of {len(every)} micro-batches"


def check_predictions(t: Training, logits: np.ndarray) -> None:
    """Before scores are made of them. Raises TrainingError."""
    assert t.validation is not None
    bad = t.validation.ids[~np.isfinite(logits).reshape(len(logits), -1).all(axis=1)].tolist()
    if bad:
        more = " and more" if len(bad) > MOST_NAMED else ""
        raise TrainingError(
            f"after step {t.progress.step} the predictions for {len(bad)} of {len(logits)} validation rows are no numbers: "
            f"rows {bad[:MOST_NAMED]}{more}"
        )


def check_weights(t: Training, weights: dict[str, Tensor] | None) -> None:
    """Before a save: the loss is known before the weights change. Raises TrainingError on every rank.

    A sum shows any NaN or infinity, and takes a twentieth of the time of `isfinite`.
    """
    trained = {name for name, parameter in t.engine.raw_model.named_parameters() if parameter.requires_grad}
    bad = [name for name, value in (weights or {}).items() if name in trained and not math.isfinite(value.sum().item())]
    if bad := gather_object([bad])[0]:
        raise TrainingError(
            f"step {t.progress.step} has made {len(bad)} weights no numbers, {bad[0]} first, and is not saved; see train.lr"
        )
