"""The temperature that an export carries, from the predictions on validation that were kept beside a checkpoint's scores."""

from __future__ import annotations

import numpy as np

from sft_dist.evaluation.class_report import is_single_label
from sft_dist.evaluation.comparison import AnswersReader
from sft_dist.evaluation.inference import is_not_finite
from sft_dist.evaluation.leaderboard import Scored
from sft_dist.metrics.calibration import fit_temperature
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of


def fitted_temperature(reader: AnswersReader, entry: Scored, recipe: Recipe) -> float:
    """Raises UserError for other tasks than single-label classification, and where there are no predictions to fit it on."""
    if not is_single_label(task_of(recipe)):
        raise UserError(f"no temperature: {recipe.task.described()} has no probabilities of one class an example")
    answers = reader.read(entry, recipe, "validation")
    if answers is None or any(map(is_not_finite, answers.split.predictions)):
        hint = f"evaluate it again: sft-dist eval {entry.folder.path} --force"
        raise UserError(f"no temperature: the validation predictions of {entry.name} are missing or not finite; {hint}")
    targets = np.array(answers.task.references(answers.examples))
    return fit_temperature(np.stack(answers.split.predictions), targets)
