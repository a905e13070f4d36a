"""Saving a checkpoint during training, and deleting old ones."""

from __future__ import annotations

import logging
import time
from typing import Any

from sft_dist.checkpoints import store as ckpt
from sft_dist.checkpoints.saver import Saved
from sft_dist.evaluation.inference import better
from sft_dist.recipe.files import read_json
from sft_dist.run.folder import RunFolder
from sft_dist.training.nonfinite import check_weights
from sft_dist.training.snapshot import Snapshot
from sft_dist.training.state import Training

log = logging.getLogger("sft_dist")


def save(t: Training) -> None:
    """Copies the training state; unless `train.async_save` is off, a thread writes the files while training continues."""
    t.heartbeat(t.progress.step, "saving")
    log_saved(t, t.saver.finish())
    started = time.monotonic()
    snapshot = Snapshot.take(t)
    check_weights(t, snapshot.weights)
    t.saver.save(t.progress.step, snapshot.write)
    t.records.write("snapshot", {"seconds": round(time.monotonic() - started, 3)})
    if not t.recipe.train.async_save:
        log_saved(t, t.saver.finish())


def log_saved(t: Training, saved: Saved | None) -> None:
    if saved is None:
        return
    t.records.write("checkpoint", {"seconds": round(saved.seconds, 3)}, saved.step)
    log.info("step %d: checkpoint saved in %.1f s", saved.step, saved.seconds)
    if t.recipe.train.keep_last is not None:
        _prune(t, t.recipe.train.keep_last)


def _prune(t: Training, keep_last: int) -> None:
    """Deletes old checkpoints; never the best, never one that no validation and no sweep has scored yet."""
    scores_by_step = evaluated_steps(t.folder) | t.progress.validated
    steps = [checkpoint.step for checkpoint in ckpt.published(t.folder)]
    # The best of those on disk: a better one may still be on its way there, and never arrive.
    best: tuple[int | None, float | None] = (None, None)
    for step in steps:
        score = scores_by_step.get(step, {}).get(t.metric)
        if better(score, best[1], t.direction):
            best = (step, score)
    keep = {*(step for step in steps if step not in scores_by_step), *t.steps.keep_points, best[0]}
    for step in ckpt.prune(t.folder, keep_last, keep):
        log.info("step %d: old checkpoint deleted (train.keep_last is %d)", step, keep_last)


def evaluated_steps(folder: RunFolder) -> dict[int, dict[str, Any]]:
    """Returns step -> scores on validation, for the steps that the sweep has scored."""
    records = [read_json(path) for path in folder.evaluation.glob("step-*.validation.json")]
    return {record["step"]: record["scores"] for record in records if record}
