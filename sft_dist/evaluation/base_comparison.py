"""Whether a winner is worse than the model it began as, for `eval --no-worse-than base`: on the task itself, and on general tasks
that it was not trained for (`evaluate.lm_eval`).

Paired tests on the same examples and documents, one-sided in both directions, each Holm-corrected over all scores.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

from sft_dist.checkpoints.store import Checkpoint
from sft_dist.evaluation.comparison import AnswersReader
from sft_dist.evaluation.evaluator import Evaluator
from sft_dist.evaluation.general_sets import GeneralScores, GeneralSet, all_scores, general_sets
from sft_dist.evaluation.leaderboard import Scored
from sft_dist.evaluation.statistics import (
    ALPHA,
    ExampleScores,
    ExampleSums,
    holm,
    interval,
    p_value,
    smallest_difference,
)
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json, write_json
from sft_dist.recipe.metrics import selection_metric
from sft_dist.recipe.schema import Recipe

log = logging.getLogger("sft_dist")

NOT_TESTED = "not tested"
_OPPOSITE: dict[str, Literal["lower", "higher"]] = {"lower": "higher", "higher": "lower"}


class BaseRecord(Checkpoint):
    """Names the predictions of the base model as if they were a checkpoint's, before the first step."""

    def fingerprint(self) -> str:
        return "base"


@dataclass(frozen=True)
class BaseComparison:
    """Builds what the leaderboard says of the winner and the base."""

    evaluator: Evaluator
    reader: AnswersReader
    winner: Scored
    recipe: Recipe
    force: bool = False

    def board(self, with_task: bool) -> dict[str, Any]:
        """Returns `against_base` of the leaderboard: `rows` with scores and results, all general `scores`, and a `note`.
        `with_task`: also by the task's own metric, for which the base is scored on validation. Raises UserError where that
        leaves nothing to compare, or something that cannot be tested."""
        sets: list[GeneralSet] = []
        scores: dict[str, Any] = {}
        if self.recipe.evaluate.lm_eval is not None:
            records = GeneralScores(self.evaluator, self.recipe, self.winner, self.force).records()
            sets = general_sets(*records)
            scores = dict(zip(("winner", "base"), map(all_scores, records), strict=True))
        note = ""
        if with_task:
            own, note = self._own_set()
            sets = [*own, *sets]
            if not sets:
                hint = "compare with another run, or, of language models, name general tasks: evaluate.lm_eval"
                raise UserError(f"--no-worse-than base: {note}; {hint}")
        rows = compared(sets)
        if with_task and (untested := [row["score"] for row in rows if row["result"] == NOT_TESTED]):
            hint = "choose another evaluate.metric, or other tasks"
            raise UserError(f"--no-worse-than base: {', '.join(untested)} cannot be tested on these examples; {hint}")
        return {"base": self.recipe.model.path, "rows": rows, "scores": scores, "note": note}

    def _own_set(self) -> tuple[list[GeneralSet], str]:
        """Returns the task's own metric on validation, or why the base has no such score."""
        metric, direction = selection_metric(self.recipe)
        record = self._base_record()
        if new := record["new_weights"]:
            note = f"the base has no score of {metric}: {len(new)} weights of its head are new ({new[0]})"
            return [], note
        values = self.winner.scores.get(metric), record["scores"].get(metric)
        base = Scored(self.winner.folder, 0, "base", record["scores"])
        answers = [self.reader.read(entry, self.recipe, "validation") for entry in (self.winner, base)]
        if None in values or not all(answers):
            hint = f"evaluate it again: sft-dist eval {self.winner.folder.path} --force"
            raise UserError(
                f"--no-worse-than base: predictions or scores of {metric} on validation are missing; {hint}"
            )
        first, second = (content.scores().get(metric) for content in answers if content)
        return [GeneralSet(f"{metric} on validation", direction, values[0], values[1], first, second)], ""  # type: ignore[arg-type]

    def _base_record(self) -> dict[str, Any]:
        folder = self.winner.folder
        file = folder.evaluation / "base.validation.json"
        record = read_json(file)
        if not self.force and record:
            return dict(record)
        log.info("%s  the base model on validation", folder.id)
        scores, new = self.evaluator.score_base(self.recipe, BaseRecord(folder.checkpoint(0), 0), "validation")
        record = {"split": "validation", "scores": scores, "new_weights": new}
        write_json(file, record)
        return record


def compared(sets: list[GeneralSet]) -> list[dict[str, Any]]:
    """Returns a row for each set: both scores, the winner's interval, p-values, the smallest difference, and the result."""
    worse = holm([_p_value(entry, "worse") for entry in sets])
    better = holm([_p_value(entry, "better") for entry in sets])
    return [
        {
            "score": entry.name,
            "direction": entry.better,
            "winner": entry.winner,
            "base": entry.base,
            "interval": _interval(entry.winner_scores),
            "p_worse": p_worse,
            "p_better": p_better,
            "smallest_difference": _smallest(entry.winner_scores, entry.base_scores),
            "result": _result(p_worse, p_better),
        }
        for entry, p_worse, p_better in zip(sets, worse, better, strict=True)
    ]


def worse_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each score on which the winner is worse than the base."""
    return [
        f"{row['score']} is {row['winner']:.4f}, worse than {row['base']:.4f} of the base model beyond chance (p = {row['p_worse']:.4f})"
        for row in rows
        if row["result"] == "worse"
    ]


def _p_value(entry: GeneralSet, suspicion: str) -> float | None:
    if entry.winner_scores is None or entry.base_scores is None:
        return None
    side: Literal["lower", "higher"] = "lower" if entry.better == "max" else "higher"
    return p_value(entry.winner_scores, entry.base_scores, side if suspicion == "worse" else _OPPOSITE[side])


def _result(p_worse: float | None, p_better: float | None) -> str:
    if p_worse is None or p_better is None:
        return NOT_TESTED
    return "worse" if p_worse <= ALPHA else "better" if p_better <= ALPHA else "not distinguishable"


def _interval(scores: ExampleScores | None) -> list[float] | None:
    ends = interval(scores) if scores is not None else None
    return [*ends] if ends else None


def _smallest(first: ExampleScores | None, second: ExampleScores | None) -> float | None:
    if not isinstance(first, ExampleSums) or not isinstance(second, ExampleSums):
        return None
    return smallest_difference(first, second) if first.num_units == second.num_units else None
