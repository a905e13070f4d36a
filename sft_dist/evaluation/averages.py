"""Means of a run's checkpoints as further candidates of a sweep: of its newest ones, and of its greedy soup.

Greedy soup: Wortsman et al. 2022, arXiv 2203.05482, recipe 1. Checkpoints are tried from the best validation score down, and one joins
the mean where the score of the mean does not fall.

A mean is written as a folder like a checkpoint's, scored, and removed again. Its record and its predictions stay, and hold as long as
its members have the same bytes, so that what was interrupted continues. The winner's is written again and stays.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_dist.checkpoints.averaging import identity, make_mean, remove_means
from sft_dist.checkpoints.store import Checkpoint
from sft_dist.evaluation.evaluator import Evaluator
from sft_dist.evaluation.leaderboard import Scored, format_score, rank_key, rank_scores
from sft_dist.recipe.files import read_json, write_json
from sft_dist.recipe.metrics import selection_metric
from sft_dist.recipe.schema import Recipe
from sft_dist.run.candidates import Averaging
from sft_dist.run.folder import RunFolder
from sft_dist.run.locks import held

log = logging.getLogger("sft_dist")


class AverageScores:
    """Validation scores of means of the checkpoints of some runs."""

    def __init__(self, evaluator: Evaluator, recipes: Mapping[RunFolder, Recipe], force: bool = False) -> None:
        self._evaluator, self._recipes, self._force = evaluator, recipes, force
        self._scored: dict[Path, Scored] = {}

    @property
    def num_scored(self) -> int:
        """How many means were scored, also on the way to a greedy soup."""
        return len(self._scored)

    def candidates(self, averagings: Sequence[Averaging], scored: Sequence[Scored]) -> list[Scored]:
        """Returns the means of at least two checkpoints that `averagings` describe, each once. Raises UserError where checkpoints
        cannot be averaged."""
        means: dict[Path, Scored] = {}
        for folder in self._recipes if averagings else ():
            checkpoints = [entry for entry in scored if entry.folder == folder]
            for averaging in averagings:
                try:
                    members = self._members(folder, averaging, checkpoints)
                    if len(members) > 1:
                        mean = self._mean(folder, members)
                        means[mean.path] = mean
                except FileNotFoundError:
                    if all(entry.path.is_dir() for entry in checkpoints):
                        raise
                    log.warning("%s  %s: training has deleted a checkpoint, so there is no mean", folder.id, averaging)
        return list(means.values())

    def _members(self, folder: RunFolder, averaging: Averaging, checkpoints: Sequence[Scored]) -> list[Scored]:
        """Returns the checkpoints to average; fewer than two are no mean, which is logged."""
        if averaging.num_last is None:
            members = self._greedy_soup(folder, checkpoints)
            note = "greedy: no other checkpoint joins the best one"
        else:
            members = list(checkpoints[-averaging.num_last :]) if len(checkpoints) >= averaging.num_last else []
            note = f"{averaging}: there are only {len(checkpoints)} checkpoints"
        if len(members) < 2:
            log.info("%s  %s, so there is no mean", folder.id, note)
        return members

    def _greedy_soup(self, folder: RunFolder, checkpoints: Sequence[Scored]) -> list[Scored]:
        metric, direction = selection_metric(self._recipes[folder])

        def cost(members: Sequence[Scored]) -> float:
            mean = members[0] if len(members) == 1 else self._mean(folder, members)
            return rank_scores(mean.scores, metric, direction)[0]

        return greedy_soup(sorted(checkpoints, key=lambda entry: rank_key(entry, metric, direction)), cost)

    def _mean(self, folder: RunFolder, entries: Sequence[Scored]) -> Scored:
        steps = tuple(sorted(entry.step for entry in entries))
        path = folder.candidate(steps[-1], steps)
        if path not in self._scored:
            record = self._record(folder, steps, folder.evaluation / f"{path.name}.validation.json")
            self._scored[path] = Scored(folder, steps[-1], record["checkpoint"], record["scores"], steps)
            self._report(self._scored[path])
        return self._scored[path]

    def _record(self, folder: RunFolder, steps: tuple[int, ...], record_file: Path) -> dict[str, Any]:
        source = identity([Checkpoint(folder.checkpoint(step), step) for step in steps])
        if not self._force and (record := _valid_record(record_file, source)):
            return record
        with held(_lock_file(folder, folder.candidate(steps[-1], steps).name), wait=True):
            if not self._force and (record := _valid_record(record_file, source)):
                return record  # of another process, which was waited for
            mean = make_mean(folder, steps)
            try:
                scores = self._evaluator.score(self._recipes[folder], mean, "validation")
                record = {"step": mean.step, **source, "split": "validation", "checkpoint": mean.fingerprint()}
                write_json(record_file, {**record, "scores": scores})
            finally:
                shutil.rmtree(mean.path, ignore_errors=True)
        return {**record, "scores": scores}

    def _report(self, mean: Scored) -> None:
        metric, _ = selection_metric(self._recipes[mean.folder])
        log.info("%s  %s  validation %s %s", mean.folder.id, mean.name, metric, format_score(mean.scores.get(metric)))


def greedy_soup(ranking: Sequence[Scored], cost: Callable[[Sequence[Scored]], float]) -> list[Scored]:
    """Returns the members of the soup. `ranking`: the best first; `cost`: of a mean, lower is better, infinite where it has no score."""
    members = list(ranking[:1])
    lowest = cost(members) if members else math.inf
    for entry in ranking[1:] if math.isfinite(lowest) else ():
        if (trial := cost([*members, entry])) <= lowest:
            members, lowest = [*members, entry], trial
    return members


def write_winner(winner: Scored) -> Checkpoint:
    """Returns the winner's folder; a mean is written again. Raises FileNotFoundError where training has deleted a member."""
    if not winner.members:
        return Checkpoint(winner.path, winner.step)
    with held(_lock_file(winner.folder, winner.path.name), wait=True):
        return make_mean(winner.folder, winner.members)


def remove_others(folder: RunFolder, winner: Scored) -> None:
    """Removes the means of a run but the winner's and those that another process is scoring."""

    def is_removable(name: str) -> bool:
        if folder.averages / name == winner.path:
            return False
        with held(_lock_file(folder, name), wait=False) as is_free:
            return is_free

    remove_means(folder, is_removable)


def _lock_file(folder: RunFolder, name: str) -> Path:
    folder.evaluation.mkdir(mode=0o700, exist_ok=True)
    return folder.evaluation / f".{name}.lock"


def _valid_record(file: Path, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the record of a mean whose members have these bytes."""
    record = read_json(file)
    return record if isinstance(record, dict) and source.items() <= record.items() else None
