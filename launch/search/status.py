"""`sft-dist search status`: the best trial so far, what every trial is doing, and why the pruned ones are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.run_state import state_of
from launch.search.definition import Definition, read_definition
from launch.search.folder import SUMMARY
from launch.search.lease import LOCK, OWNER
from launch.search.trial import Trial, better_first
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_object, write_json
from sft_dist.recipe.text import format_table
from sft_dist.run.locks import is_locked
from sft_dist.run.varying import describe_settings

if TYPE_CHECKING:
    from launch.search.study import Study

MIN_FOR_IMPORTANCE = 8  # finished trials


def show_status(recipe: str, overrides: Sequence[str], root: Path, as_json: bool) -> str:
    """Returns the status of a search. Raises UserError."""
    definition = read_definition(recipe, overrides, root)
    study = read_study(definition)
    if as_json:
        controller = read_object(definition.folder / OWNER) if is_locked(definition.folder / LOCK) else None
        return json.dumps({**summary_of(definition, study), "controller": controller}, indent=2, ensure_ascii=False)
    return describe(definition, study)


def read_study(definition: Definition) -> Study:
    """Returns the study, to read. Raises UserError when the search has not begun."""
    require_optuna()
    from launch.search.study import Study  # imports optuna

    if (study := Study.read(definition.folder, definition.space)) is None:
        raise UserError(f"this search has not begun; first: sft-dist search {definition.source.file}")
    return study


def require_optuna() -> None:
    """Raises UserError when the extra is not installed."""
    if find_spec("optuna") is None:
        raise UserError("a search needs Optuna, which is not installed: pip install 'sft-dist[search]'")


def describe(definition: Definition, study: Study) -> str:
    """Returns the status for people."""
    trials, maximize = study.trials(), definition.objective.maximize
    paths = list(definition.space.dimensions)
    head = ["trial", "run", *_short(paths), "state", definition.objective.metric, "step"]
    rows = [
        [
            str(trial.number),
            trial.run,
            *_values(trial, paths),
            state,
            _number(trial.best_score),
            _step(definition, trial),
        ]
        for trial in trials
        for state in [state_in(definition, trial)]
    ]
    counts = Counter(row[-3] for row in rows)
    lines = [", ".join(f"{count} {state}" for state, count in counts.items())]
    if ranking := better_first(trials, maximize):
        best = ranking[0]
        score = f"{definition.objective.metric} {_number(best.value)}"
        lines.append(f"best: trial {best.number}, {score}, {describe_settings(best.point)} (run {best.run})")
    if importance := importance_of(study, trials):
        shares = ", ".join(f"{path} {share:.0%}" for path, share in importance.items())
        lines.append(f"importance (PED-ANOVA): {shares}")
    reasons = [f"trial {trial.number}: {trial.reason}" for trial in trials if trial.reason]
    return "\n".join([format_table(head, rows), "", *lines, *([""] if reasons else []), *reasons])


def summary_of(definition: Definition, study: Study, with_importance: bool = True) -> dict[str, Any]:
    """Returns the status for programs."""
    trials, objective = study.trials(), definition.objective
    ranking = better_first(trials, objective.maximize)
    return {
        "name": definition.runs.name,
        "metric": objective.metric,
        "direction": "max" if objective.maximize else "min",
        "sampler": definition.search.sampler,
        "pruning": definition.search.pruning.name,
        "budget": definition.search.budget.model_dump(),
        "best": ranking[0].number if ranking else None,
        "importance": importance_of(study, trials) if with_importance else {},
        "dimensions": {
            path: dimension.model_dump(exclude_none=True) for path, dimension in definition.space.dimensions.items()
        },
        "trials": [_trial(definition, trial) for trial in trials],
    }


def write_summary(definition: Definition, study: Study, ended: bool) -> None:
    """Writes `search.json`, when it changes; the importance of dimensions only once the search has ended."""
    summary = summary_of(definition, study, ended)
    if read_object(definition.folder / SUMMARY) != json.loads(json.dumps(summary)):
        write_json(definition.folder / SUMMARY, summary)


def importance_of(study: Study, trials: Sequence[Trial]) -> dict[str, float]:
    """Returns the share of each dimension in the differences of scores, the largest first; empty with too few finished trials."""
    scores = {trial.value for trial in trials if trial.state == "finished"}
    return study.importance() if len(scores) >= MIN_FOR_IMPORTANCE else {}


def state_in(definition: Definition, trial: Trial) -> str:
    """Returns what a trial is doing: with the state of its run while it is active."""
    if trial.state == "pruned" and not trial.run:
        return "refused"
    if trial.is_paused:
        return "paused"
    folder = definition.runs / trial.run
    if trial.state == "running":
        return state_of(folder).state if (folder / "recipe.json").is_file() else "reserved"
    return trial.state


def _trial(definition: Definition, trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "run": trial.run,
        "state": state_in(definition, trial),
        "point": dict(trial.point),
        "score": trial.best_score,
        "scores": {str(step): score for step, score in trial.scores.items()},
        "rungs": list(trial.rungs),
        "reason": trial.reason,
    }


def _short(paths: Sequence[str]) -> list[str]:
    """Returns the last words of key paths; with more of the path where two end alike."""
    words = [path.rsplit(".", 1)[-1] for path in paths]
    return [path if words.count(word) > 1 else word for path, word in zip(paths, words, strict=True)]


def _values(trial: Trial, paths: Sequence[str]) -> list[str]:
    texts = {path: describe_settings({"x": value}).removeprefix("x=") for path, value in trial.point.items()}
    return [texts.get(path, "") for path in paths]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _step(definition: Definition, trial: Trial) -> str:
    folder = definition.runs / trial.run
    if not trial.run or not (folder / "recipe.json").is_file():
        return ""
    state = state_of(folder)
    return f"{state.step}/{state.total_steps or '?'}"
