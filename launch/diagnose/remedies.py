"""What to change: of each finding the settings of the next recipe, and the command that runs it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.diagnose.evidence import Evidence
from launch.diagnose.findings import Finding
from sft_dist.recipe.schema import Recipe
from sft_dist.run.varying import format_setting

Changes = dict[str, Any]  # key path -> value of the next recipe

WARMUP = "10%"
MAX_WORKERS = 8


@dataclass(frozen=True)
class Remedy:
    """The next recipe as changes of this one, and what settings cannot do."""

    changes: Changes = field(default_factory=dict)
    advice: str = ""


def remedy_of(finding: Finding, evidence: Evidence) -> Remedy:
    """Returns the first thing to try. Pure."""
    return REMEDIES[finding.cause](finding, evidence)


def _lower_rate(finding: Finding, evidence: Evidence) -> Remedy:
    settings = evidence.settings
    changes: Changes = {"train.lr": rounded_rate(_lr(evidence) / 10)}
    if finding.cause == "diverged" and settings.get("train.clip_norm") is None:
        changes["train.clip_norm"] = 1.0
    return Remedy(changes | _warmup(settings))


def _warmup(settings: Mapping[str, Any]) -> Changes:
    if settings.get("train.warmup") is not None or settings.get("train.schedule.name") == "constant":
        return {}
    return {"train.warmup": WARMUP}


def _higher_rate(finding: Finding, evidence: Evidence) -> Remedy:
    return Remedy({"train.lr": rounded_rate(_lr(evidence) * 10)}, "repeat it while the loss keeps falling slowly")


def _fewer_steps(finding: Finding, evidence: Evidence) -> Remedy:
    """Stops where validation was best; of a later start nothing is lost, because its schedule ends there, too."""
    steps = max(1, int(finding.numbers.get("step", evidence.step)))
    advice = "more rows help more; `data.augment` and `train.optimizer.weight_decay` help a little"
    return Remedy(_length(evidence, steps), advice)


def _more_steps(finding: Finding, evidence: Evidence) -> Remedy:
    return Remedy(_length(evidence, 4 * (evidence.total_steps or evidence.step)))


def _length(evidence: Evidence, steps: int) -> Changes:
    """In the unit of the recipe."""
    if evidence.settings.get("train.steps") is not None or not evidence.epochs:
        return {"train.steps": steps}
    return {"train.epochs": float(f"{evidence.epochs * steps / max(evidence.step, 1):.3g}")}


def _schedule(finding: Finding, evidence: Evidence) -> Remedy:
    if "share" in finding.numbers:
        return Remedy({"train.schedule": "linear"})
    return Remedy({"train.warmup": WARMUP})


def _more_weights(finding: Finding, evidence: Evidence) -> Remedy:
    if evidence.settings.get("tuning.method") in ("lora", "qlora"):
        rank = int(evidence.settings.get("tuning.r", 16))
        return Remedy({"tuning.r": 4 * rank, "tuning.alpha": 8 * rank}, "if that is not enough: `tuning: full`")
    if evidence.settings.get("tuning.method") not in (None, "full"):
        return Remedy({"tuning": "full"})
    return Remedy({}, "all weights are trained: a larger model, or inputs that say more, may fit better")


def _new_validation(finding: Finding, evidence: Evidence) -> Remedy:
    train = evidence.settings.get("data.source.train")
    if train is not None:
        advice = "validation is then held out of the training rows; give `data.split.group` where rows belong together"
        return Remedy({"data.source": train}, advice)
    return Remedy(
        {"data.clean.near_duplicates": 0.8},
        "give `data.split.group` where rows belong together, such as of one speaker",
    )


def _weigh_classes(finding: Finding, evidence: Evidence) -> Remedy:
    if evidence.settings.get("train.loss.class_weights") is None:
        return Remedy({"train.loss": {"name": "cross-entropy", "class_weights": "balanced"}})
    return Remedy({"data.sampling": "balanced"}, "more rows of the class help more")


def _longer(finding: Finding, evidence: Evidence) -> Remedy:
    """Long enough for every row of the check, if that is at most eight times as long."""
    length = int(evidence.settings.get("data.max_length", 256))
    longest = max(evidence.data_check.longest.values(), default=0.0) if evidence.data_check else 0.0
    target = int(longest) if length < longest <= 8 * length else 4 * length
    return Remedy({"data.max_length": target}, "memory grows with it; `plan` estimates it")


def _more_workers(finding: Finding, evidence: Evidence) -> Remedy:
    workers = int(evidence.settings.get("data.workers", 0))
    return Remedy(
        {"data.workers": min(MAX_WORKERS, 2 * workers or 4)}, "or store inputs as small as the model reads them"
    )


def _review_labels(finding: Finding, evidence: Evidence) -> Remedy:
    advice = "`sft-dist check` lists the rows; correct them, or exclude them with `data.where`"
    if (
        evidence.settings.get("train.loss.name") in (None, "cross-entropy")
        and evidence.evaluation
        and evidence.evaluation.labels
    ):
        return Remedy({"train.loss": {"name": "cross-entropy", "label_smoothing": 0.1}}, advice)
    return Remedy({}, advice)


def _compare_labels(finding: Finding, evidence: Evidence) -> Remedy:
    return Remedy(
        {},
        "compare some rows with their labels: a join, a sort or the order of `data.labels` may have mixed them up",
    )


def _more_seeds(finding: Finding, evidence: Evidence) -> Remedy:
    return Remedy({}, "train each setting with more seeds, or on more data, before one is chosen")


REMEDIES: Mapping[str, Callable[[Finding, Evidence], Remedy]] = {
    "diverged": _lower_rate,
    "bad-schedule": _schedule,
    "leak": _new_validation,
    "truncation": _longer,
    "loader-bound": _more_workers,
    "dead-class": _weigh_classes,
    "label-noise": _review_labels,
    "wrong-labels": _compare_labels,
    "lr-too-high": _lower_rate,
    "lr-too-low": _higher_rate,
    "over-fit": _fewer_steps,
    "under-fit": _more_steps,
    "plateau": _more_weights,
    "seed-noise": _more_seeds,
}


def _lr(evidence: Evidence) -> float:
    return float(evidence.settings.get("train.lr", 0.0))


def rounded_rate(lr: float) -> float:
    """Returns a learning rate with two digits."""
    return float(f"{lr:.2g}")


def diff_lines(remedy: Remedy, evidence: Evidence) -> list[str]:
    """`- train.lr: 3e-1` and `+ train.lr: 3e-2`"""
    lines = []
    for key, value in remedy.changes.items():
        old = {
            name: of_setting
            for name, of_setting in evidence.settings.items()
            if name == key or name.startswith(f"{key}.")
        }
        lines += [
            f"- {name}: {format_setting(of_setting)}" for name, of_setting in old.items() if of_setting is not None
        ]
        lines.append(f"+ {key}: {format_value(value)}")
    return lines


def command_of(remedy: Remedy, recipe: str) -> str:
    """Returns the command that trains with the changes."""
    overrides = [f"{key}={format_value(value)}" for key, value in remedy.changes.items()]
    return shlex.join(["sft-dist", "run", recipe, *overrides]) if overrides else ""


def next_recipe(recipe: Recipe, remedy: Remedy) -> dict[str, Any]:
    """Returns the recipe with the changes; settings that have their defaults are omitted."""
    tree: dict[str, Any] = recipe.model_dump(mode="json", exclude_defaults=True)
    for key, value in remedy.changes.items():
        *sections, name = key.split(".")
        section = tree
        for inner in sections:
            section = section.setdefault(inner, {})
        section[name] = value
    return tree


def format_value(value: Any) -> str:
    """Returns a value as an override on the command line has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_value(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value) if isinstance(value, list) else format_setting(value, max_chars=10_000)
