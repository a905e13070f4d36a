"""The exported temperature is that of the calibration report, and is refused where it has no meaning."""

from __future__ import annotations

import numpy as np
import pytest

from sft_dist.evaluation.class_report import calibration
from sft_dist.evaluation.leaderboard import Scored
from sft_dist.evaluation.temperature import fitted_temperature
from sft_dist.recipe.errors import UserError
from sft_dist.run.folder import RunFolder
from tests.sft_dist.evaluation.test_slices import TASK, answers_of
from tests.tiny_text import recipe_of


class Reader:
    def __init__(self, answers):
        self.answers = answers

    def read(self, entry, recipe, split):
        assert (entry.step, split) == (5, "validation")
        return self.answers


@pytest.fixture
def entry(tmp_path):
    return Scored(RunFolder(tmp_path / "run"), 5, "its bytes", {})


def test_it_is_fitted_on_validation(entry):
    answers = answers_of([24, 16, 10])
    targets = np.array(answers.task.references(answers.examples))
    report = calibration({"validation": answers.split.predictions}, {"validation": targets})
    temperature = fitted_temperature(Reader(answers), entry, TASK.recipe)
    assert temperature == report["temperature"]
    # Logits of 3 and 0, right in 190 of 240: log(190 / 50) is what they should differ by.
    assert temperature == pytest.approx(3 / np.log(190 / 50), rel=1e-3)


def test_without_predictions_or_classes_there_is_none(entry):
    with pytest.raises(UserError, match="predictions of step 5 are missing or not finite; evaluate it again"):
        fitted_temperature(Reader(None), entry, TASK.recipe)
    with pytest.raises(UserError, match="has no probabilities of one class an example"):
        fitted_temperature(Reader(None), entry, recipe_of("translation"))
