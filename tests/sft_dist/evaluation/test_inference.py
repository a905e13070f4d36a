"""What is scored of a model that answers with what is no number: nothing, and it is told."""

from __future__ import annotations

import numpy as np
import pytest

from sft_dist.data.rows import Examples
from sft_dist.evaluation.inference import BatchPredictions, better, losses_of_each, scores_of
from tests.tiny_text import recipe_of


class Counting:
    """A task that would score anything."""

    def __init__(self, kind):
        self.recipe = recipe_of(kind)

    def weights(self, loss, examples):
        return np.ones(3)

    def score(self, predictions, examples, processor):
        return {"scored": len(predictions)}


def scored(predictions, total=3.0, kind="text-classification"):
    return scores_of(Counting(kind), None, predictions, np.array([total]), Examples(None), None)


SOUND = np.array([0.1, 0.9])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["text-classification", "object-detection"])
def test_a_prediction_that_is_no_number_leaves_every_score_undefined(kind, value):
    """Classes: scikit-learn refused it, and the sweep ended. Boxes: NaN was the surest of all scores, and counted as right."""
    bad = {"scores": np.array([value]), "labels": np.array([0])} if kind == "object-detection" else SOUND * value
    found = scored([SOUND, bad, SOUND], kind=kind)
    assert found.pop("undefined") == {"why": "1 of 3 predictions are NaN or infinite"}
    assert set(found) == {*recipe_of(kind).task.kind.metrics, "loss"}
    assert set(found.values()) == {None}


def test_a_loss_that_is_no_number_tells_of_tags_and_texts():
    found = scored([{"tags": ["O"], "words": None}] * 3, total=np.nan, kind="token-classification")
    assert found["undefined"] == {"why": "the loss is NaN"}
    assert found["f1"] is None


def test_an_infinite_loss_is_undefined_and_the_scores_stand():
    """CTC has one for a text that is too long for its sound."""
    assert scored([SOUND] * 3, total=np.inf) == {"loss": None, "scored": 3}
    assert scored([SOUND] * 3) == {"loss": 1.0, "scored": 3}


def test_an_undefined_score_is_better_than_nothing_else():
    assert not better(None, None, "max")
    assert not better(None, 0.1, "min")
    assert better(0.1, None, "min")


def test_losses_are_in_the_order_of_the_examples_or_absent():
    def batch(indices, losses):
        return BatchPredictions(np.array(indices), [None] * len(indices), np.zeros(1), losses)

    parts = [batch([2, 0], np.array([[20.0], [0.0]])), batch([1], np.array([[10.0]]))]
    assert losses_of_each(parts).tolist() == [[0], [10], [20]]
    assert losses_of_each([*parts, batch([3], None)]) is None
