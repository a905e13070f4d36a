"""What the examples add up to is the score that the task reports, for every metric of every task."""

from __future__ import annotations

import numpy as np
import pytest

from sft_dist.evaluation.example_scores import example_scores
from sft_dist.evaluation.statistics import ExampleSubsets, interval, p_value
from tests.sft_dist.evaluation.task_predictions import CASES


def value_of(scores):
    if isinstance(scores, ExampleSubsets):
        return scores.evaluate(scores.predictions, np.concatenate(scores.units))
    return scores.value


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_sums_over_examples_give_the_task_s_scores(name, groups):
    task, predictions, examples = CASES[name]()
    recorded = task.score(predictions, examples, None)
    numbers = np.arange(len(examples)) // 2 if groups else None
    scores = example_scores(task, None, predictions, examples, numbers)
    expected = {metric for metric in task.recipe.task.kind.metrics if metric != "loss"}
    assert expected <= set(scores)
    for metric in expected:
        assert value_of(scores[metric]) == pytest.approx(recorded[metric], nan_ok=True), metric
        assert scores[metric].num_units == (-(-len(examples) // 2) if groups else len(examples))


@pytest.mark.parametrize("problem", ["single-label", "multi-label", "regression"])
def test_the_loss_of_the_examples_is_that_of_the_split(problem):
    import torch

    task, predictions, examples = CASES[problem]()
    loss = task.build_loss(examples)
    sums = example_scores(task, loss, predictions, examples)["loss"]
    total = loss.total(torch.from_numpy(np.stack(predictions)), task.targets_of(examples.column("label")))
    assert sums.value == pytest.approx(float(total) / float(task.weights(loss, examples).sum()), rel=1e-6)


def test_recorded_losses_are_divided_as_those_of_the_split(monkeypatch):
    """Of two parts, each with its divisor; to one of them no example adds anything."""
    task, predictions, examples = CASES["object-detection"]()
    losses = np.random.default_rng(0).gamma(2.0, size=(len(examples), 2))
    weights = np.stack([np.arange(len(examples)) + 1, np.zeros(len(examples))], axis=1)
    monkeypatch.setattr("sft_dist.evaluation.example_scores.weights_of", lambda *_: weights)
    totals = losses.sum(axis=0)
    groups = np.arange(len(examples)) // 2
    for of_groups in (None, groups):
        scores = example_scores(task, object(), predictions, examples, of_groups, losses)["loss"]
        assert scores.value == pytest.approx(totals[0] / weights[:, 0].sum() + totals[1])
        low, high = interval(scores)
        assert low < scores.value < high
    assert "loss" not in example_scores(task, object(), predictions, examples)


def test_generated_answers_change_no_score_over_tokens():
    task, predictions, examples = CASES["instruction-tuning"]()
    with_answers = [(*prediction, np.arange(3, dtype=np.int32)) for prediction in predictions]
    values = [
        {name: score.value for name, score in example_scores(task, None, entries, examples).items()}
        for entries in (predictions, with_answers)
    ]
    assert values[0] == values[1]


def test_a_subset_that_an_installed_metric_refuses_is_undefined(monkeypatch):
    class Refusing:
        name = "refusing"

        def compute(self, predictions, references):
            raise ValueError("only one class")

    monkeypatch.setattr("sft_dist.evaluation.example_scores.installed_metric", lambda recipe: Refusing())
    task, predictions, examples = CASES["single-label"]()
    assert interval(example_scores(task, None, predictions, examples)["refusing"]) is None


@pytest.mark.slow
def test_average_precision_of_boxes_has_interval_and_test():
    task, predictions, examples = CASES["object-detection"]()
    scores = example_scores(task, None, predictions, examples)["map50"]
    few = ExampleSubsets(scores.predictions, scores.units, scores.evaluate, 210 * len(examples))
    low, high = interval(few)
    assert 0 <= low < high <= 1
    assert p_value(few, few) == 1.0
    assert interval(ExampleSubsets(scores.predictions, scores.units, scores.evaluate, len(examples))) is None
