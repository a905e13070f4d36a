"""Whether a winner is worse than another run's best checkpoint, beyond chance, for `eval --no-worse-than`."""

from __future__ import annotations

from typing import Literal

from sft_dist.evaluation.comparison import Answers, AnswersReader
from sft_dist.evaluation.leaderboard import Scored, rank_key
from sft_dist.evaluation.statistics import ALPHA, holm, p_value
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json
from sft_dist.recipe.metrics import selection_metric
from sft_dist.recipe.schema import Recipe
from sft_dist.run.candidates import members_in
from sft_dist.run.folder import RunFolder

_SPLITS = ("validation", "test")


def worse_than(winner: Scored, recipe: Recipe, reference_folder: RunFolder, reader: AnswersReader) -> list[str]:
    """Returns a line for each split on which the winner is worse: one-sided paired tests, Holm-corrected over the splits that both
    were scored on. Raises UserError when the two were not scored on the same rows, or by metrics that cannot be compared."""
    metric, direction = selection_metric(recipe)
    reference_recipe = reference_folder.recipe()
    reference = best_recorded(reference_folder, metric, direction)
    splits, p_values, lines = [], [], []
    for split in _SPLITS:
        values = [_recorded(entry, split).get(metric) for entry in (winner, reference)]
        if None in values:
            continue
        first = _answers(reader, winner, recipe, split)
        second = _answers(reader, reference, reference_recipe, split)
        if not first.same_examples(second):
            raise UserError(
                f"--no-worse-than: {_name(reference)} was scored on other {split} rows than {_name(winner)}, so the two "
                "cannot be compared; evaluate both on the same data"
            )
        splits.append(split)
        p_values.append(_p_value(metric, first, second, direction))
        lines.append(f"{metric} on {split} is {values[0]:.4f}, worse than {values[1]:.4f} of {_name(reference)}")
    if not splits:
        raise UserError(f"--no-worse-than: {_name(winner)} and {_name(reference)} have no common score {metric}")
    adjusted = zip(lines, holm(p_values), strict=True)
    return [f"{line} beyond chance (p = {p:.4f})" for line, p in adjusted if p is not None and p <= ALPHA]


def best_recorded(folder: RunFolder, metric: str, direction: str) -> Scored:
    """The best candidate of a run by its recorded validation scores. Raises UserError without any."""
    files = [file for kind in ("step", "mean") for file in sorted(folder.evaluation.glob(f"{kind}-*.validation.json"))]
    scored = [
        Scored(folder, record["step"], record["checkpoint"], record["scores"], members_in(record))
        for record in map(read_json, files)
        if record
    ]
    if not scored:
        raise UserError(
            f"--no-worse-than {folder.path}: it has no scores; evaluate it first: sft-dist eval {folder.path}"
        )
    return min(scored, key=lambda entry: rank_key(entry, metric, direction))


def _recorded(entry: Scored, split: str) -> dict[str, float | None]:
    record = read_json(entry.folder.evaluation / f"{entry.path.name}.{split}.json")
    return record["scores"] if record and record["checkpoint"] == entry.fingerprint else {}


def _answers(reader: AnswersReader, entry: Scored, recipe: Recipe, split: str) -> Answers:
    answers = reader.read(entry, recipe, split)
    if answers is None:
        hint = f"evaluate it again: sft-dist eval {entry.folder.path} --force"
        raise UserError(
            f"--no-worse-than: the {split} predictions of {_name(entry)} are missing or of other rows; {hint}"
        )
    return answers


def _p_value(metric: str, first: Answers, second: Answers, direction: str) -> float:
    scores, reference_scores = first.scores().get(metric), second.scores().get(metric)
    worse: Literal["lower", "higher"] = "lower" if direction == "max" else "higher"
    p = p_value(scores, reference_scores, worse) if scores and reference_scores else None
    if p is None:
        raise UserError(f"--no-worse-than: {metric} cannot be tested on these examples; choose another evaluate.metric")
    return p


def _name(entry: Scored) -> str:
    return f"{entry.folder.id} {entry.name}"
