"""Everything that the page shows, as JSON-like data, read from run folders alone. Strings in it are data: the page shows them as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from launch.diagnose.diagnosis import Diagnosis, diagnose
from launch.diagnose.evidence import read_evidence
from launch.report.advice import summarise
from launch.report.attempts import attempts_of, cost_of, environment_of
from launch.report.curves import Curve, align, curves_of, read_metrics
from launch.report.diagnosis import diagnosis_section
from launch.report.scores import read_leaderboards
from launch.report.search import searches_of
from launch.report.values import mapping_in
from launch.run_state import RunState
from sft_dist.recipe.files import read_object
from sft_dist.run.folder import RunFolder, plugins_in
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

CHECKED = ("data", "task", "model")  # sections of a recipe that decide about its check

Curves = Mapping[tuple[str, str], Curve]


@dataclass(frozen=True)
class Subject:
    """A run and what its files hold."""

    state: RunState
    recipe: dict[str, Any] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    curves: Curves = field(default_factory=dict)
    device: str = "cpu"
    data: dict[str, Any] = field(default_factory=dict)  # what its data card shows
    environment: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)  # the parent of its recipe, and what differs from it
    diagnosis: Diagnosis | None = None  # None where nothing was trained


def collect(subjects: Sequence[Subject], max_points: int) -> dict[str, Any]:
    """Returns the data of a page about these runs, with at most `max_points` points a curve."""
    states = [subject.state for subject in subjects]
    # A run without a readable recipe differs in nothing that could be named.
    settings = {number: settings_in(subject.recipe) for number, subject in enumerate(subjects) if subject.recipe}
    varying = varying_settings(settings)
    names = _names(states, naming_settings(varying))
    leaderboards = read_leaderboards([Path(state.folder) for state in states])
    runs = [_run(subject, names[number], varying.get(number, {})) for number, subject in enumerate(subjects)]
    data = {
        "title": title_of(states),
        "runs": runs,
        "varying": list(dict.fromkeys(key for values in varying.values() for key in values)),
        "settings": _shared_settings(settings, varying),
        "curves": align_all([subject.curves for subject in subjects], max_points),
        "leaderboards": leaderboards,
        "searches": searches_of(Path(state.folder) for state in states),
        "cost": cost_of(attempt for subject in subjects for attempt in subject.attempts),
        "devices": sorted({subject.device for subject in subjects}),
        "data": _distinct([subject.data for subject in subjects]),
        "diagnosis": diagnosis_section(
            {n: subject.diagnosis for n, subject in enumerate(subjects) if subject.diagnosis}
        ),
        "environments": _distinct([subject.environment for subject in subjects]),
        "bases": _distinct([subject.base for subject in subjects]),
    }
    return {**data, "summary": summarise(data)}


def read_run(state: RunState) -> Subject:
    """Reads a run's files. Files that hold what this program never writes must not hide the other runs."""
    if state.state == "unreadable":
        return Subject(state)
    try:
        return _read_run(state)
    except Exception as error:
        cause = f"its files cannot be read ({type(error).__name__}: {error})"
        return Subject(replace(state, state="unreadable", cause=cause))


def _read_run(state: RunState) -> Subject:
    folder = RunFolder(Path(state.folder))
    lines = read_metrics(folder.metrics_file)
    recipe, plan = read_object(folder.recipe_file), read_object(folder.plan_file)
    return Subject(
        state=state,
        recipe=recipe,
        attempts=attempts_of(folder, lines),
        curves=curves_of(lines),
        device="gpu" if plan.get("device") == "gpu" else "cpu",
        data=_data_card(recipe, plan, read_object(folder.splits_file)),
        environment=_environment(plan, plugins_in(folder), environment_of(folder)),
        base=_base(plan.get("base")),
        diagnosis=diagnose(read_evidence(state)) if lines else None,
    )


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
    first = next(iter(settings), None)
    if first is None:
        return {}
    return {key: value for key, value in settings[first].items() if key not in varying[first]}


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


def _data_card(recipe: dict[str, Any], plan: dict[str, Any], splits: dict[str, Any]) -> dict[str, Any]:
    rows = plan.get("rows") or {}
    settings = {key: value for key, value in settings_in(recipe).items() if key.startswith(DATA_KEYS)}
    return {
        "settings": {
            key.removeprefix("data."): value for key, value in settings.items() if value not in (None, {}, [])
        },
        "splits": {split: _split(facts) for split, facts in splits.items() if isinstance(facts, dict)}
        or {split: _split({"rows": count}) for split, count in (rows.get("splits") or {}).items()},
        "dropped": {reason: count for reason, count in (rows.get("dropped") or {}).items() if count},
        "labels": [str(label) for label in rows.get("labels") or ()],
        "check": check_summary(json.dumps({section: recipe.get(section) for section in CHECKED}, sort_keys=True)),
    }


@lru_cache(maxsize=256)
def check_summary(sections: str) -> str:
    """Returns what `sft-dist check` found in the data of these sections of a recipe, as far as it was checked on this machine."""
    from launch.check import cached_report  # imports the schema, which nothing else here needs
    from sft_dist.recipe.schema import Recipe

    try:
        recipe = Recipe.model_validate({"name": "run", "tuning": "full", "train": {"lr": 1.0}, **json.loads(sections)})
    except ValueError:
        return ""
    report = cached_report(recipe)
    if report is None:
        return ""
    kinds = {severity: _kinds(report, severity) for severity in ("error", "warning")}
    return (
        "; ".join(f"{severity}s: {', '.join(names)}" for severity, names in kinds.items() if names) or "nothing found"
    )


def _kinds(report: Mapping[str, Any], severity: str) -> list[str]:
    findings = [finding for finding in report["findings"] if finding.get("severity") == severity]
    return list(dict.fromkeys(str(finding.get("kind")) for finding in findings))


def _base(base: Any) -> dict[str, Any]:
    """The parent of a recipe: its name and a row for each setting that differs."""
    changes = mapping_in(mapping_in(base).get("changes"))
    rows = [
        {"key": key, "parent": values[0], "own": values[1]}
        for key, values in changes.items()
        if isinstance(values, list) and len(values) == 2
    ]
    return {"name": str(base.get("name")), "changes": rows} if rows else {}


def _split(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and the digest of their contents, where they are recorded."""
    types = {"rows": int, "contents": str}
    return {key: facts[key] for key, kind in types.items() if isinstance(facts.get(key), kind)}


def _environment(plan: dict[str, Any], plugins: dict[str, str], start: dict[str, Any]) -> dict[str, Any]:
    facts = {
        "strategy": (plan.get("strategy") or {}).get("name"),
        "device": plan.get("device"),
        "nodes": plan.get("nodes"),
        "processes per node": plan.get("processes_per_node"),
        "threads per process": plan.get("threads_per_process"),
        "batch": _batch(plan.get("batch") or {}),
        "plugins": ", ".join(f"{name}: {version}" for name, version in plugins.items()),
    }
    facts |= {key.replace("_", " "): value for key, value in start.items()}
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
