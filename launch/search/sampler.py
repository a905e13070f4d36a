"""The next point of a search, by Optuna's samplers.

Each point is drawn in a study in memory that is made of the trials so far, from a generator seeded by (seed of the search,
number of the trial). So the same trials give the same next point in any process, and nothing is written before it is known
whether the point can be planned.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from launch.search.space import Point, Space

if TYPE_CHECKING:
    from sft_dist.recipe.schema import Dimension, Search

optuna.logging.set_verbosity(optuna.logging.WARNING)


def next_point(space: Space, trials: Sequence[FrozenTrial], search: Search, maximize: bool) -> Point | None:
    """Returns the next point; None when a grid has no more. `trials`: all so far, paused ones as pruned."""
    if search.sampler == "grid":
        tried = [point_of(space, trial) for trial in trials]
        return next((point for point in space.grid() if point not in tried), None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about features that are new in Optuna, and dimensions with few trials
        study = optuna.create_study(
            direction=direction_of(maximize), sampler=_sampler(search.sampler, _seed(search.seed, len(trials)))
        )
        study.add_trials(trials)
        trial = study.ask()
        return {path: space.value(path, label) for path, label in _suggestions(space, trial)}


def direction_of(maximize: bool) -> StudyDirection:
    return StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE


def distribution_of(space: Space, path: str) -> BaseDistribution:
    """Returns a dimension in Optuna's terms."""
    dimension: Dimension = space.dimensions[path]
    if dimension.choice is not None:
        return CategoricalDistribution([space.label(path, value) for value in dimension.choice])
    low, high = dimension.log or dimension.float or dimension.int or (0, 1)
    if dimension.int is not None or (dimension.log is not None and isinstance(low, int) and isinstance(high, int)):
        return IntDistribution(int(low), int(high), log=dimension.log is not None)
    return FloatDistribution(low, high, log=dimension.log is not None)


def frozen(space: Space, point: Point, state: TrialState, **facts: Any) -> FrozenTrial:
    """Returns a new trial in Optuna's terms."""
    distributions = {path: distribution_of(space, path) for path in point}
    params = {path: space.label(path, value) for path, value in point.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return create_trial(state=state, params=params, distributions=distributions, **facts)


def point_of(space: Space, trial: FrozenTrial) -> Point:
    """Returns a trial's point, in the order of the space."""
    return {path: space.value(path, trial.params[path]) for path in space.dimensions if path in trial.params}


def _suggestions(space: Space, trial: optuna.Trial) -> Iterator[tuple[str, Any]]:
    point: Point = {}
    for path in space.dimensions:
        if space.is_active(path, point):
            label = _suggest(trial, path, distribution_of(space, path))
            point[path] = space.value(path, label)
            yield path, label


def _suggest(trial: optuna.Trial, path: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(path, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(path, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(path, distribution.low, distribution.high, log=distribution.log)


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")
