"""The next point depends on the trials so far, the seed and the number alone."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState

from launch.search.definition import Definition
from launch.search.sampler import frozen, next_point
from tests.launch.conftest import Workplace
from tests.launch.search.conftest import define

SPACE = """\
search:
  space:
    train.lr: {log: [1.0e-5, 1.0e-1]}
    train.global_batch: {log: [8, 64]}
    train.clip_norm: {float: [0.5, 2.0]}
    train.schedule: {choice: [linear, {name: polynomial, power: 2.0}]}
    train.optimizer: {choice: [adamw, sgd]}
    train.optimizer.momentum: {float: [0.1, 0.9], when: {train.optimizer: sgd}}
"""


def points(definition: Definition, sampler: str, count: int) -> list[dict[str, object]]:
    search = definition.search.model_copy(update={"sampler": sampler})
    trials = []
    for number in range(count):
        point = next_point(definition.space, trials, search, maximize=True)
        assert point is not None
        trials.append(frozen(definition.space, point, TrialState.COMPLETE, value=float(number)))
    return [dict(trial.params) for trial in trials]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_points_can_be_repeated_and_lie_in_the_space(workplace: Workplace, sampler: str) -> None:
    definition = define(workplace, SPACE)
    first = points(definition, sampler, 14)
    assert first == points(definition, sampler, 14)
    assert len({str(point) for point in first}) == 14
    for point in first:
        assert 1e-5 <= point["train.lr"] <= 1e-1
        assert isinstance(point["train.global_batch"], int)
        assert 0.5 <= point["train.clip_norm"] <= 2.0
        assert ("train.optimizer.momentum" in point) == (point["train.optimizer"] == "sgd")
    assert {point["train.schedule"] for point in first} == {"linear", '{"name": "polynomial", "power": 2.0}'}


def test_another_seed_gives_other_points(workplace: Workplace) -> None:
    assert points(define(workplace, SPACE), "random", 3) != points(
        define(workplace, SPACE, "search.seed=1"), "random", 3
    )
