"""Compares two runs by their folders: recipe, code, data, environment, hardware, and where their curves part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.run_state import parse_line
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import irregular, read_object
from sft_dist.recipe.text import format_table, join_names, printable
from sft_dist.run.folder import RunFolder, plugins_in
from sft_dist.run.varying import format_setting, settings_in

Facts = dict[str, Any]  # name -> value
MAX_ROWS = 20  # of a table of differences; --json has all
DIGEST_CHARS = 12
CURVES = {"train": "training loss", "validation": "validation loss"}  # kind of line in metrics.jsonl -> name


@dataclass(frozen=True)
class Section:
    """One section of a comparison. `differences`: name -> its values in both runs, None where a run has no such thing."""

    num_facts: int
    differences: dict[str, tuple[Any, Any]]
    unrecorded: tuple[str, ...] = ()  # runs that recorded nothing of it


@dataclass(frozen=True)
class CurveDifference:
    """Two curves at the steps that both runs logged."""

    num_steps: int
    last_step: int | None
    equal_until: int | None = None  # last step before the curves part
    first_step: int | None = None  # at which they differ; None: identical
    first_values: tuple[float | None, float | None] | None = None
    largest: float | None = None  # absolute difference
    largest_step: int | None = None

    @property
    def is_identical(self) -> bool:
        return self.first_step is None


@dataclass(frozen=True)
class RunDifference:
    """What differs between two runs."""

    runs: tuple[str, str]  # folders
    sections: dict[str, Section]
    curves: dict[str, CurveDifference]

    @property
    def is_same_curve(self) -> bool:
        """Whether every loss that both runs logged is the same number, and there is one."""
        return self.curves["train"].num_steps > 0 and all(curve.is_identical for curve in self.curves.values())

    def to_json(self) -> dict[str, Any]:
        return {"identical_curve": self.is_same_curve, **asdict(self)}


def compare_runs(a: Path, b: Path) -> RunDifference:
    """Compares two run folders. Raises UserError for folders without a readable recipe."""
    folders = RunFolder(a), RunFolder(b)
    for folder in folders:
        if not read_object(folder.recipe_file):
            raise UserError(f"{folder.path} is not a run folder: it has no recipe.json that can be read")
    sections = {
        name: compare_facts(facts_of(folders[0]), facts_of(folders[1]), names_of(folders))
        for name, facts_of in FACTS.items()
    }
    curves = {kind: compare_curves(*(losses(folder, kind) for folder in folders)) for kind in CURVES}
    return RunDifference((str(a), str(b)), sections, curves)


def compare_facts(a: Facts, b: Facts, names: tuple[str, str]) -> Section:
    """Compares two sets of facts. Where one is empty, nothing was recorded and nothing differs."""
    unrecorded = tuple(name for name, facts in zip(names, (a, b), strict=True) if not facts)
    keys = () if unrecorded else dict.fromkeys([*a, *b])
    differences = {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}
    return Section(len({*a, *b}), differences, unrecorded)


def names_of(folders: tuple[RunFolder, RunFolder]) -> tuple[str, str]:
    """`my/0a1b2c3d4e`"""
    a, b = (f"{folder.path.parent.name}/{folder.id}" for folder in folders)
    return a, b


# ── facts ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def recipe_facts(folder: RunFolder) -> Facts:
    return settings_in(read_object(folder.recipe_file))


def code_facts(folder: RunFolder) -> Facts:
    """Returns the digest of each file of the source that the run was made with."""
    files = sorted(file for file in folder.source.rglob("*.py") if not irregular(file))
    return {str(file.relative_to(folder.source)): _digest(file) for file in files}


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:DIGEST_CHARS]
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def data_facts(folder: RunFolder) -> Facts:
    """Returns of each split its number of rows, and digests of which rows they are and of what these hold."""
    facts: Facts = {}
    splits = {split: values for split, values in read_object(folder.splits_file).items() if isinstance(values, dict)}
    for split, values in splits.items():
        digests = {f"{split} row numbers": values.get("digest"), f"{split} contents": values.get("contents")}
        facts |= {f"{split} rows": values.get("rows")}
        facts |= {name: str(digest)[:DIGEST_CHARS] for name, digest in digests.items() if digest}
    return facts


def environment_facts(folder: RunFolder) -> Facts:
    """Returns the versions of packages and plugins at the last start."""
    start = _last_start(folder)
    packages = start.get("packages")
    versions = {name: start[name] for name in ("torch",) if name in start}
    versions |= packages if isinstance(packages, dict) else {}
    return versions | {f"plugin {name}": version for name, version in plugins_in(folder).items()}


def hardware_facts(folder: RunFolder) -> Facts:
    """Returns the processors of the last start and how they shared the work."""
    start, plan = _last_start(folder), read_object(folder.plan_file)
    shape = ("nodes", "processes_per_node", "threads_per_process")
    facts: Facts = {name: start[name] for name in ("host", "device", "world_size") if name in start}
    facts = {**facts, **{name: plan[name] for name in shape if name in plan}}
    return facts | settings_in({name: plan[name] for name in ("strategy", "batch") if name in plan})


def _last_start(folder: RunFolder) -> dict[str, Any]:
    starts = [read_object(attempt.start_file) for attempt in folder.all_attempts()]
    return next((start for start in reversed(starts) if start), {})


FACTS: Mapping[str, Callable[[RunFolder], Facts]] = {
    "recipe": recipe_facts,
    "code": code_facts,
    "data": data_facts,
    "environment": environment_facts,
    "hardware": hardware_facts,
}


# ── curves ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def losses(folder: RunFolder, kind: str) -> dict[int, float | None]:
    """Returns the loss of each logged step; a step that a later attempt trained again counts as it was then."""
    if irregular(folder.metrics_file):
        return {}
    try:
        lines = folder.metrics_file.read_bytes().splitlines()
    except OSError:
        return {}
    entries = [entry for line in lines if (entry := parse_line(line)).get("kind") == kind]
    return {entry["step"]: entry.get("loss") for entry in entries if _is_loss(entry)}


def _is_loss(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("step"), int) and isinstance(entry.get("loss"), float | int | None)


def compare_curves(a: Mapping[int, float | None], b: Mapping[int, float | None]) -> CurveDifference:
    """Compares losses by step. A loss is None where it was NaN or infinite."""
    steps = sorted(a.keys() & b.keys())
    differing = [step for step in steps if a[step] != b[step]]
    if not differing:
        return CurveDifference(len(steps), max(steps, default=None))
    first = differing[0]
    sizes = {step: abs(x - y) for step in differing if (x := a[step]) is not None and (y := b[step]) is not None}
    largest_step = max(sizes, key=lambda step: sizes[step], default=None)
    return CurveDifference(
        num_steps=len(steps),
        last_step=steps[-1],
        equal_until=max((step for step in steps if step < first), default=None),
        first_step=first,
        first_values=(a[first], b[first]),
        largest=None if largest_step is None else sizes[largest_step],
        largest_step=largest_step,
    )


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def describe(difference: RunDifference) -> str:
    lines = [f"{name}  {folder}" for name, folder in zip("AB", difference.runs, strict=True)]
    for name, section in difference.sections.items():
        lines += ["", f"{name}: {_summary(section)}", *_table(section)]
    lines += ["", *(f"{CURVES[kind]}: {describe_curve(curve)}" for kind, curve in difference.curves.items())]
    return printable("\n".join(lines))


def _summary(section: Section) -> str:
    if section.unrecorded:
        return f"not recorded by {join_names(section.unrecorded)}"
    if not section.differences:
        return f"the same ({section.num_facts} compared)"
    return f"{len(section.differences)} of {section.num_facts} differ"


def _table(section: Section) -> list[str]:
    differences = list(section.differences.items())
    if not differences:
        return []
    rows = [[name, *map(_value, values)] for name, values in differences[:MAX_ROWS]]
    lines = format_table(["", "A", "B"], rows).splitlines()
    num_omitted = len(differences) - MAX_ROWS
    return [f"  {line}" for line in lines] + (
        [f"  and {num_omitted:,} more (--json lists them all)"] if num_omitted > 0 else []
    )


def _value(value: Any) -> str:
    return "-" if value is None else format_setting(value)


def describe_curve(curve: CurveDifference) -> str:
    if not curve.num_steps:
        return "no step that both runs logged"
    if curve.first_step is None or curve.first_values is None:
        return f"identical at all {curve.num_steps:,} steps that both runs logged, up to step {curve.last_step:,}"
    equal = f"identical up to step {curve.equal_until:,}, " if curve.equal_until is not None else ""
    a, b = ("NaN or infinite" if value is None else repr(value) for value in curve.first_values)
    text = f"{equal}differs from step {curve.first_step:,} on: {a} and {b}"
    if curve.largest is not None:
        text += f"; largest difference {curve.largest:.2g} at step {curve.largest_step:,} of {curve.last_step:,}"
    return text


def show_difference(a: Path, b: Path, as_json: bool) -> str:
    """Returns the comparison for standard output. Raises UserError."""
    difference = compare_runs(a, b)
    return json.dumps(difference.to_json(), indent=2, ensure_ascii=False) if as_json else describe(difference)
