"""Scores that a sweep needs: of every checkpoint of some runs on validation, of the winner on other splits, and of the model that
the winner began as.

Each is recorded in the run folder. A checkpoint whose record is there (same bytes) is not scored again. Processes that sweep the same
runs share the work: each locks the checkpoint that it scores, and one that has nothing else left waits for the locks of others.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_dist.checkpoints import store as ckpt
from sft_dist.evaluation.averages import write_winner
from sft_dist.evaluation.evaluator import Evaluator
from sft_dist.evaluation.leaderboard import Scored, format_score
from sft_dist.evaluation.reuse import record_evaluation
from sft_dist.recipe.files import read_json, write_json
from sft_dist.recipe.metrics import selection_metric
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.units import format_duration
from sft_dist.run.attempt import has_ended
from sft_dist.run.folder import RunFolder
from sft_dist.run.locks import held

log = logging.getLogger("sft_dist")

FOLLOW_INTERVAL_S = 2.0


class ValidationScores:
    """Validation scores of the checkpoints of some runs."""

    def __init__(
        self,
        evaluator: Evaluator,
        recipes: Mapping[RunFolder, Recipe],
        force: bool = False,
        share: tuple[int, int] = (0, 1),  # of all checkpoints: number, and how many shares there are
    ) -> None:
        self._evaluator, self._recipes, self._force, self._share = evaluator, recipes, force, share
        self._results: dict[tuple[Path, str], Scored | str] = {}  # (path, fingerprint) -> scores, or the damage
        self._damaged_means: list[str] = []
        self._durations_s: list[float] = []

    @property
    def scored(self) -> list[Scored]:
        """Returns records in the order of runs and steps, whichever process scored them."""
        return [result for result in self._present_results() if isinstance(result, Scored)]

    def exclude_damaged(self, ranking: list[Scored]) -> list[Scored]:
        """Returns the ranking from the first checkpoint on whose every byte is as it was written, which an export requires, too:
        scoring does not read the optimizer's state."""
        for position, winner in enumerate(ranking):
            try:
                checkpoint = write_winner(winner)
                problems = ckpt.verify(checkpoint) or _changed_mean(winner, checkpoint)
            except FileNotFoundError:  # training continues and has just deleted it
                continue
            if not problems:
                return ranking[position:]
            damage = _damage(winner.folder, checkpoint, problems)
            if winner.members:
                self._damaged_means.append(damage)
            else:
                self._results[checkpoint.path, winner.fingerprint] = damage
        return []

    @property
    def damaged(self) -> list[str]:
        return [result for result in self._present_results() if isinstance(result, str)] + self._damaged_means

    def update(self) -> None:
        """Scores every checkpoint without scores. Those that other processes are scoring come last: their records are waited for,
        and replaced where such a process ended without writing them."""
        for wait in (False, True):
            for folder, checkpoint in self._checkpoints():
                try:
                    self._update(folder, checkpoint, wait)
                except FileNotFoundError:
                    if checkpoint.path.is_dir():
                        raise
                    # Training continues and has just deleted it.

    def follow(self, interval_s: float = FOLLOW_INTERVAL_S) -> None:
        """Scores checkpoints as they are written, until every run has ended."""
        while True:
            over = all(map(has_ended, self._recipes))  # asked first, so that the last checkpoint is not missed
            self.update()
            if over:
                return
            time.sleep(interval_s)

    def _checkpoints(self) -> list[tuple[RunFolder, ckpt.Checkpoint]]:
        index, count = self._share
        checkpoints = [(folder, checkpoint) for folder in self._recipes for checkpoint in ckpt.published(folder)]
        return checkpoints[index::count]

    def _present_results(self) -> list[Scored | str]:
        """Of checkpoints that still exist with the same bytes."""
        results = []
        for _, checkpoint in self._checkpoints():
            with contextlib.suppress(FileNotFoundError):  # training continues and has just deleted it
                results.append(self._results.get((checkpoint.path, checkpoint.fingerprint())))
        return [result for result in results if result is not None]

    def _update(self, folder: RunFolder, checkpoint: ckpt.Checkpoint, wait: bool) -> None:
        fingerprint = checkpoint.fingerprint()
        key = checkpoint.path, fingerprint
        if key in self._results:
            return
        if problems := ckpt.verify(checkpoint, ckpt.FILES_OF_EVALUATION):
            self._results[key] = _damage(folder, checkpoint, problems)
            return
        num_scored = len(self._durations_s)
        record = self._record(folder, checkpoint, fingerprint, wait)
        if record is not None:
            self._results[key] = Scored(folder, checkpoint.step, fingerprint, record["scores"])
            remaining = self._remaining() if len(self._durations_s) > num_scored else ""
            self._report(folder, checkpoint, record["scores"], remaining)

    def _record(
        self, folder: RunFolder, checkpoint: ckpt.Checkpoint, fingerprint: str, wait: bool
    ) -> dict[str, Any] | None:
        """Returns None when another process is scoring the checkpoint and `wait` is False."""
        record_file = _record_file(folder, checkpoint, "validation")
        if not self._force and (record := _valid_record(record_file, fingerprint)):
            return record
        folder.evaluation.mkdir(mode=0o700, exist_ok=True)
        with held(folder.evaluation / f".{checkpoint.path.name}.lock", wait) as is_held:
            if not is_held:
                return None
            if not self._force and (record := _valid_record(record_file, fingerprint)):
                return record
            return self._score(folder, checkpoint, fingerprint, record_file)

    def _score(
        self, folder: RunFolder, checkpoint: ckpt.Checkpoint, fingerprint: str, record_file: Path
    ) -> dict[str, Any]:
        started = time.monotonic()
        scores = self._evaluator.score(self._recipes[folder], checkpoint, "validation")
        record = {"step": checkpoint.step, "split": "validation", "checkpoint": fingerprint, "scores": scores}
        write_json(record_file, record)
        self._durations_s.append(time.monotonic() - started)
        return record

    def _report(
        self, folder: RunFolder, checkpoint: ckpt.Checkpoint, scores: Mapping[str, Any], remaining: str
    ) -> None:
        steps = [saved.step for saved in ckpt.published(folder)]
        metric, _ = selection_metric(self._recipes[folder])
        log.info(
            "%s  checkpoint %d/%d  step %d  validation %s %s%s",
            folder.id, sum(step <= checkpoint.step for step in steps), len(steps), checkpoint.step, metric,
            format_score(scores.get(metric)), remaining,
        )  # fmt: skip

    def _remaining(self) -> str:
        missing = [
            not _record_file(folder, checkpoint, "validation").exists() for folder, checkpoint in self._checkpoints()
        ]
        return remaining_text(self._durations_s, sum(missing))


def _damage(folder: RunFolder, checkpoint: ckpt.Checkpoint, problems: list[str]) -> str:
    damage = f"{folder.id} {checkpoint.path.name} is damaged and excluded: {'; '.join(problems)}"
    log.warning("%s", damage)
    return damage


def _changed_mean(winner: Scored, checkpoint: ckpt.Checkpoint) -> list[str]:
    """The same members make the same bytes, unless another version of this program or of its libraries averages them."""
    if not winner.members or checkpoint.fingerprint() == winner.fingerprint:
        return []
    return ["made again, its bytes are not those that were scored; eval --force scores it again"]


def remaining_text(durations_s: list[float], missing: int) -> str:
    """Returns how long checkpoints without scores will take: "  at most 2:10 left (3 checkpoints)". Other processes shorten it."""
    if not missing:
        return ""
    usual_s = durations_s[1:] or durations_s  # the first one includes reading data and base model
    duration = format_duration(missing * sum(usual_s) / len(usual_s))
    return f"  at most {duration} left ({missing} checkpoint{'' if missing == 1 else 's'})"


def score_winner(evaluator: Evaluator, winner: Scored, recipe: Recipe, split: str, force: bool) -> dict[str, Any]:
    """Scores of the winner on a split that is not used for choosing; kept, so that asking again does not score again."""
    checkpoint = ckpt.Checkpoint(winner.path, winner.step)
    record_file = _record_file(winner.folder, checkpoint, split)
    if not force and (record := _valid_record(record_file, winner.fingerprint)):
        return record["scores"]
    if split == "test":
        record_evaluation(winner.folder, winner.step, winner.fingerprint, winner.members)
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


def _record_file(folder: RunFolder, checkpoint: ckpt.Checkpoint, split: str) -> Path:
    return folder.evaluation / f"{checkpoint.path.name}.{split}.json"


def _valid_record(file: Path, fingerprint: str) -> dict[str, Any] | None:
    """Returns the record of a checkpoint with these bytes."""
    record = read_json(file)
    return record if record and record.get("checkpoint") == fingerprint else None
