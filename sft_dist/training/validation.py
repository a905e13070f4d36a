"""Validation during training: scores on the validation split, the best step so far, and early stopping."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from sft_dist.engines.base import broadcast_buffers
from sft_dist.evaluation.inference import assemble, better, forward, length_sorted_batches, scores_of
from sft_dist.evaluation.leaderboard import rank_scores
from sft_dist.training.nonfinite import check_predictions
from sft_dist.training.state import Progress, Training
from sft_dist.training.stopping import reduce_loss_and_stop
from sft_dist.tuning.optimizers import before_evaluation

log = logging.getLogger("sft_dist")

STOP_CHECK_INTERVAL = 32  # batches of a validation between two checks for a request to stop


class _Interrupted(Exception):
    """A request to stop interrupted the validation; the message is its reason."""


def use_evaluation_weights(t: Training) -> None:
    """Puts the weights and running statistics in place that are validated and saved. Every rank must call it."""
    before_evaluation(t.engine.optimizer)
    broadcast_buffers(t.engine.raw_model)


def validate(t: Training) -> str:
    """Scores the model on the validation split. Returns the reason when a request to stop interrupted it, else "".

    An interrupted step is saved without scores; a resumed run computes them first.
    """
    try:
        _validate(t)
    except _Interrupted as interruption:
        return str(interruption)
    return ""


def _until_stop_request(t: Training, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields batches until a rank is asked to stop. All ranks have equally many, so they agree at the same one. Raises
    _Interrupted on all of them."""
    for num_done, batch in enumerate(batches):
        if num_done and num_done % STOP_CHECK_INTERVAL == 0:
            _, stop = reduce_loss_and_stop(t, torch.zeros((), dtype=torch.float64, device=t.accelerator.device))
            if stop:
                log.info(
                    "step %d: validation interrupted after %d of %d batches", t.progress.step, num_done, len(batches)
                )
                raise _Interrupted(stop)
        yield batch


def _validate(t: Training) -> None:
    assert t.validation is not None
    t.heartbeat(t.progress.step, "validating")
    world, rank = t.accelerator.num_processes, t.accelerator.process_index
    batches = length_sorted_batches(t.validation.lengths, t.recipe.evaluate.micro_batch)
    share = batches[rank::world]
    # Sharded weights are gathered by all ranks together, so a rank with one batch less repeats one, for nothing.
    idle = [batches[0]] * (-(-len(batches) // world) - len(share))
    predictions_here = forward(
        t.model,
        t.task,
        t.loss,
        t.processor,
        t.validation,
        _until_stop_request(t, [*share, *idle]),
        t.accelerator.device,
        t.engine.autocast(),
        t.engine.raw_model,
    )[: len(share)]
    # Ranks exchange (indices, predictions), so nothing is padded in and nothing has to be taken out again.
    predictions, totals = assemble(gather_object(predictions_here), len(t.validation))
    check_predictions(t, predictions)
    scores = scores_of(t.task, t.loss, predictions, totals, t.validation, t.processor)
    scores = {name: value for name, value in scores.items() if not isinstance(value, (list, dict))}  # can be large
    progress = t.progress
    progress.validated[progress.step] = scores
    score = scores[t.metric]
    stopping = t.recipe.train.early_stopping
    gained = better(score, progress.best_score, t.direction, stopping.min_delta if stopping else 0.0)
    progress.validations_without_gain = 0 if gained else progress.validations_without_gain + 1
    # The best is kept, even when it is too small a gain for early stopping.
    if score is not None and _is_best(scores, progress, t.metric, t.direction):
        progress.best_step, progress.best_score = progress.step, score
    t.records.write("validation", scores)
    defined = {f"validation/{name}": value for name, value in scores.items() if value is not None}
    t.accelerator.log(defined, step=progress.step)
    if t.accelerator.is_main_process:
        best = _best_note(progress.step, progress.best_step)
        log.info(
            "step %d: validation loss %s, %s %s%s",
            progress.step,
            _format_score(scores["loss"]),
            t.metric,
            _format_score(score),
            best,
        )


def _is_best(scores: dict[str, Any], progress: Progress, metric: str, direction: str) -> bool:
    """Ties are broken by the loss, as on the leaderboard, so that its winner is the checkpoint that is never deleted."""
    if progress.best_step is None:
        return True
    best = {metric: progress.best_score, **progress.validated.get(progress.best_step, {})}
    return rank_scores(scores, metric, direction) < rank_scores(best, metric, direction)


def patience_is_over(t: Training) -> bool:
    stopping = t.recipe.train.early_stopping
    return stopping is not None and t.progress.validations_without_gain >= stopping.patience


def _best_note(step: int, best_step: int | None) -> str:
    """`best_step` is None while every score has been undefined."""
    if best_step is None:
        return ""
    return " (best)" if best_step == step else f" (best at step {best_step})"


def _format_score(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
