"""Trackers in a recipe."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sft_dist.recipe.tracking import TRACKER_PACKAGES
from tests.launch.conftest import make_recipe


def test_a_name_stands_for_a_tracker_without_options():
    recipe = make_recipe(train={"tracking": ["tensorboard", {"name": "wandb", "project": "demo"}, "mlflow", "trackio"]})
    assert [tracker.name for tracker in recipe.train.tracking] == ["tensorboard", "wandb", "mlflow", "trackio"]
    assert {tracker.name for tracker in recipe.train.tracking} == set(TRACKER_PACKAGES)
    assert recipe.train.tracking[1].project == "demo"


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        (
            {"name": "mlflow", "uri": "./mlruns"},
            "no longer keeps runs in folders; use a database, such as `sqlite:///mlflow.db`",
        ),
        ({"name": "mlflow", "uri": "file:///data/mlruns"}, "no longer keeps runs in folders"),
        ({"name": "mlflow", "uri": "postgresql://me:word@host/runs"}, r"put this URI into \$MLFLOW_TRACKING_URI"),
        ({"name": "tensorboard", "project": "demo"}, "project"),
        ("comet", "tensorboard"),
    ],
)
def test_what_a_tracker_cannot_do_is_refused(tracker, message):
    with pytest.raises(ValidationError, match=message):
        make_recipe(train={"tracking": [tracker]})


def test_a_tracker_is_named_once():
    with pytest.raises(ValidationError, match="names a tracker twice"):
        make_recipe(train={"tracking": ["wandb", {"name": "wandb", "project": "demo"}]})
