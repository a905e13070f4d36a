"""Everything that the page shows, as JSON-like data, read from run folders alone. Strings in it are data: the page shows them as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.report.advice import summarise
from launch.report.attempts import attempts_of, cost_of, environment_of
from launch.report.curves import Curve, align, curves_of, read_metrics
from launch.report.scores import read_leaderboards
from launch.run_state import RunState
from sft_dist.recipe.files import read_json
from sft_dist.run.folder import RunFolder
from sft_dist.run.varying import describe_settings, naming_settings, settings_in, varying_settings

# Settings that say which data these are; all others stand in the recipe.
DATA_KEYS = (
    "data.source",
    "data.subset",
    "data.revision",
    "data.where",
    "data.limit",
    "data.columns",
    "data.streaming",
)

Curves = Mapping[tuple[str, str], Curve]


@dataclass(frozen=True)
class Subject:
    """A run and what its files hold."""

    state: RunState
    recipe: dict[str, Any]
    plan: dict[str, Any]
    splits: dict[str, Any]
    plugins: dict[str, Any]
    attempts: list[dict[str, Any]]
    curves: Curves
    environment: dict[str, Any]


def collect(subjects: Sequence[Subject], max_points: int) -> dict[str, Any]:
    """Returns the data of a page about these runs, with at most `max_points` points a curve."""
    states = [subject.state for subject in subjects]
    settings = {number: settings_in(subject.recipe) for number, subject in enumerate(subjects)}
    varying = varying_settings(settings)
    names = _names(states, naming_settings(varying))
    leaderboards = read_leaderboards([Path(state.folder) for state in states])
    runs = [_run(subject, names[number], varying[number]) for number, subject in enumerate(subjects)]
    data = {
        "title": title_of(states),
        "runs": runs,
        "varying": list(dict.fromkeys(key for values in varying.values() for key in values)),
        "settings": _shared_settings(settings, varying),
        "curves": align_all([subject.curves for subject in subjects], max_points),
        "leaderboards": leaderboards,
        "cost": cost_of(attempt for subject in subjects for attempt in subject.attempts),
        "devices": sorted({_device(subject) for subject in subjects}),
        "data": _distinct([_data_card(subject) for subject in subjects]),
        "environments": _distinct([_environment(subject) for subject in subjects]),
    }
    return {**data, "summary": summarise(data)}


def read_run(state: RunState) -> Subject:
    """Reads a run's files."""
    folder = RunFolder(Path(state.folder))
    lines = read_metrics(folder.metrics_file)
    return Subject(
        state=state,
        recipe=_mapping(folder.recipe_file),
        plan=_mapping(folder.plan_file),
        splits=_mapping(folder.splits_file),
        plugins=_mapping(folder.plugins_file),
        attempts=attempts_of(folder, lines) if state.state != "unreadable" else [],
        curves=curves_of(lines),
        environment=environment_of(folder),
    )


def _mapping(file: Path) -> dict[str, Any]:
    value = read_json(file)
    return value if isinstance(value, dict) else {}


def _names(states: Sequence[RunState], naming: Mapping[int, dict[str, Any]]) -> list[str]:
    """What people call the runs: by what varies among them; a single run by what tells it from the runs beside it."""
    if len(states) == 1:
        return [describe_settings(states[0].point) or states[0].id]
    texts = [describe_settings(naming.get(number, {})) or state.id for number, state in enumerate(states)]
    return [
        f"{text} ({state.id})" if texts.count(text) > 1 and text != state.id else text
        for text, state in zip(texts, states, strict=True)
    ]


def title_of(states: Sequence[RunState]) -> str:
    """Returns the names of the recipes."""
    names = list(dict.fromkeys(state.name for state in states)) or ["no runs yet"]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _run(subject: Subject, name: str, point: dict[str, Any]) -> dict[str, Any]:
    state = subject.state
    return {
        "id": state.id,
        "recipe": state.name,
        "name": name,
        "folder": state.folder,
        "state": state.state,
        "cause": state.cause,
        "step": state.step,
        "total_steps": state.total_steps,
        "loss": state.loss,
        "eta_s": state.eta_s,
        "best_score": state.best_score,
        "best_step": state.best_step,
        "changed": list(state.changed),
        "point": point,
        "attempts": subject.attempts,
        "cost": cost_of(subject.attempts),
    }


def _shared_settings(settings: Mapping[int, dict[str, Any]], varying: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """The settings in which all runs agree."""
    return {key: value for key, value in settings[0].items() if key not in varying[0]} if settings else {}


def align_all(curves: Sequence[Curves], max_points: int) -> list[dict[str, Any]]:
    """Returns every curve of the runs, those of the same kind and name on the same steps."""
    keys = dict.fromkeys(key for run in curves for key in run)
    return [
        {
            "kind": kind,
            "name": name,
            **align({number: run[kind, name] for number, run in enumerate(curves) if (kind, name) in run}, max_points),
        }
        for kind, name in keys
    ]


def _device(subject: Subject) -> str:
    return "gpu" if subject.plan.get("device") == "gpu" else "cpu"


def _data_card(subject: Subject) -> dict[str, Any]:
    rows = subject.plan.get("rows") or {}
    settings = {key: value for key, value in settings_in(subject.recipe).items() if key.startswith(DATA_KEYS)}
    return {
        "settings": {
            key.removeprefix("data."): value for key, value in settings.items() if value not in (None, {}, [])
        },
        "splits": {
            split: {key: facts.get(key) for key in ("rows", "contents") if facts.get(key) is not None}
            for split, facts in subject.splits.items()
            if isinstance(facts, dict)
        }
        or {split: {"rows": count} for split, count in (rows.get("splits") or {}).items()},
        "dropped": {reason: count for reason, count in (rows.get("dropped") or {}).items() if count},
        "labels": rows.get("labels") or [],
    }


def _environment(subject: Subject) -> dict[str, Any]:
    plan = subject.plan
    facts = {
        "strategy": (plan.get("strategy") or {}).get("name"),
        "device": plan.get("device"),
        "nodes": plan.get("nodes"),
        "processes per node": plan.get("processes_per_node"),
        "threads per process": plan.get("threads_per_process"),
        "batch": _batch(plan.get("batch") or {}),
        "plugins": ", ".join(f"{name} {version}" for name, version in settings_in(subject.plugins).items()),
    }
    facts |= {key.replace("_", " "): value for key, value in subject.environment.items()}
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _batch(batch: Mapping[str, Any]) -> str:
    """`2 processes x 16 micro-batch x 1 accumulation = 32`"""
    if not batch:
        return ""
    return (
        f"{batch.get('world_size')} processes x {batch.get('micro_batch')} micro-batch"
        f" x {batch.get('accumulation')} accumulation = {batch.get('global_batch')}"
    )


def _distinct(cards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each different card once, with the numbers of its runs."""
    distinct: list[dict[str, Any]] = []
    for number, card in enumerate(cards):
        twin = next((entry for entry in distinct if entry["card"] == card), None)
        if twin is None:
            distinct.append({"card": card, "runs": [number]})
        else:
            twin["runs"].append(number)
    return [entry for entry in distinct if any(entry["card"].values())]
