"""By which score a checkpoint is chosen."""

from __future__ import annotations

import pytest

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.metrics import directions, installed_metric, plugins_of, selection_metric
from tests.launch.conftest import make_recipe
from tests.sft_dist.recipe.conftest import METRIC


@pytest.mark.parametrize(
    ("evaluate", "chosen"),
    [
        ({}, ("accuracy", "max")),
        ({"metric": "loss"}, ("loss", "min")),
        ({"metric": "mcc", "direction": "min"}, ("mcc", "min")),
    ],
)
def test_the_recipe_or_the_task_names_the_score(evaluate, chosen):
    assert selection_metric(make_recipe(evaluate=evaluate)) == chosen


def test_a_metric_of_another_package_joins_those_of_the_task(install):
    install()
    named = make_recipe(evaluate={"metric": "kappa"})
    assert directions(named)["kappa"] == "max"
    assert selection_metric(named) == ("kappa", "max")
    assert [str(plugin) for plugin in plugins_of(named)] == ["metric kappa of scans 1.0"]


def test_a_metric_of_the_task_needs_no_package(install):
    install(metric="1 / 0")
    assert installed_metric(make_recipe(evaluate={"metric": "loss"})) is None
    assert plugins_of(make_recipe()) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('Metric("kappa"', 'Metric("kapa"', "its Metric is named kapa"),
        ('"max"', '"up"', "`better` must be 'max' or 'min'"),
        ("lambda predictions, references: 0.0", "None", "`compute` a function"),
        ("METRIC = Metric", "METRIC = str, ", "is not a sft_dist.recipe.metrics.Metric"),
    ],
)
def test_a_metric_that_breaks_the_contract_is_refused(install, old, new, message):
    install(metric=METRIC.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        installed_metric(make_recipe(evaluate={"metric": "kappa"}))
