"""Scores that a sweep needs: of every checkpoint of a run on validation, of the winner on other splits, and of the model that
the winner began as.

Each is recorded in the run folder. A checkpoint whose record is there (same bytes) is not scored again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from sft_dist.checkpoints import store as ckpt
from sft_dist.evaluation.evaluator import Evaluator
from sft_dist.evaluation.leaderboard import Scored, format_score
from sft_dist.evaluation.looks import record_look
from sft_dist.recipe.files import read_json, write_json
from sft_dist.recipe.metrics import selection_metric
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder

log = logging.getLogger("sft_dist")


def score_checkpoints(
    evaluator: Evaluator, folder: RunFolder, recipe: Recipe, force: bool, damaged: list[str]
) -> Iterator[Scored]:
    checkpoints = ckpt.published(folder)
    for number, checkpoint in enumerate(checkpoints, 1):
        try:
            problems = ckpt.verify(checkpoint)
            fingerprint = checkpoint.fingerprint()
        except FileNotFoundError:
            continue  # training continues and has just deleted it
        if problems:
            damaged.append(f"{folder.id} {checkpoint.path.name} is damaged and excluded: {'; '.join(problems)}")
            log.warning("%s", damaged[-1])
            continue
        record_file = folder.evaluation / f"{checkpoint.path.name}.validation.json"
        record = read_json(record_file)
        if force or not record or record.get("checkpoint") != fingerprint:
            scores = evaluator.score(recipe, checkpoint, "validation")
            folder.evaluation.mkdir(mode=0o700, exist_ok=True)
            record = {"step": checkpoint.step, "split": "validation", "checkpoint": fingerprint, "scores": scores}
            write_json(record_file, record)
        metric, _ = selection_metric(recipe)
        log.info(
            "%s  checkpoint %d/%d  step %d  validation %s %s",
            folder.id, number, len(checkpoints), checkpoint.step, metric, format_score(record["scores"].get(metric)),
        )  # fmt: skip
        yield Scored(folder, checkpoint.step, fingerprint, record["scores"])


def score_winner(evaluator: Evaluator, winner: Scored, recipe: Recipe, split: str, force: bool) -> dict[str, Any]:
    """Scores of the winner on a split that is not used for choosing; kept, so that asking again does not score again."""
    record_file = winner.folder.evaluation / f"step-{winner.step:08d}.{split}.json"
    record = read_json(record_file)
    if not force and record and record.get("checkpoint") == winner.fingerprint:
        return record["scores"]
    checkpoint = ckpt.Checkpoint(winner.folder.checkpoint(winner.step), winner.step)
    if split == "test":
        record_look(winner.folder, winner.step, winner.fingerprint)
    scores = evaluator.score(recipe, checkpoint, split)
    write_json(record_file, {"step": winner.step, "split": split, "checkpoint": winner.fingerprint, "scores": scores})
    return scores


def score_untrained(evaluator: Evaluator, winner: Scored, recipe: Recipe, force: bool) -> dict[str, Any]:
    """Validation scores of the model that the winner began as, which the winner should beat; kept like those of checkpoints."""
    record_file = winner.folder.evaluation / "untrained.validation.json"
    record = read_json(record_file)
    if force or not record:
        log.info("%s  the untrained model, for comparison", winner.folder.id)
        record = {
            "step": 0,
            "split": "validation",
            "scores": evaluator.score_untrained(recipe, winner.folder, "validation"),
        }
        write_json(record_file, record)
    return record["scores"]
