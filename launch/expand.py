"""A recipe with a matrix becomes its runs: the grid over all axes, zipped groups counting as one axis.

Ten thousand points have to be quick, so a section of the recipe (train, tuning, ...) is validated once for each
distinct value it takes, and a run is put together from validated sections.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from sft_dist.recipe.checks import cross_checks
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.explain import problems_from
from sft_dist.recipe.load import validate
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.source import Source
from sft_dist.run.folder import run_id

MOST_RUNS = 100_000
MOST_PROBLEMS = 50
FIXED = ("name", "description", "base", "matrix")  # Not part of what a run is, so they cannot tell runs apart.
HASHED = tuple(name for name in Recipe.model_fields if name not in ("name", "description", "matrix"))  # as in run_id
CHOICE_TAGS = {
    "task": "type",
    "tuning": "method",
    **dict.fromkeys(("optimizer", "schedule", "loss", "strategy"), "name"),
}

KeyPath = tuple[Any, ...]


@dataclass(frozen=True)
class Run:
    """One resolved point of a recipe."""

    id: str
    recipe: Recipe
    point: dict[str, Any]  # key path -> this run's value; empty without a matrix
    places: Mapping[KeyPath, KeyPath] = field(default_factory=dict)  # where in the matrix each of these values stands


@dataclass(frozen=True)
class Value:
    """One value of one key path, and where it stands in the recipe."""

    path: KeyPath  # ("train", "lr")
    place: KeyPath  # ("matrix", "train.lr", 0)
    value: Any


Choice = tuple[Value, ...]  # values taken together: one for a grid axis, several for a zipped group


def expand(source: Source) -> list[Run]:
    """All runs, in the order of the matrix (the last axis changes fastest). Raises UserError with every problem."""
    if not source.data.get("matrix"):
        only = validate(source)
        return [Run(run_id(only), only, {})]
    axes = _axes(source)
    size = math.prod(len(axis) for axis in axes)
    if size > MOST_RUNS:
        what = " x ".join(str(len(axis)) for axis in axes)
        raise UserError(
            Problem(f"{what} = {size:,} runs; at most {MOST_RUNS:,}", path="matrix", mark=source.mark(("matrix",)))
        )
    base = {key: value for key, value in source.data.items() if key != "matrix"}
    first = tuple(value for axis in axes for value in axis[0])
    sections = _Sections(source, base, _whole(source, base, first))
    runs: list[Run] = []
    problems: dict[tuple[str, str, str], Problem] = {}
    for choices in itertools.product(*axes):
        values = tuple(itertools.chain.from_iterable(choices))
        recipe, wrong = sections.recipe(values)
        if recipe is None:
            problems.update({(problem.path, problem.message, str(problem.mark)): problem for problem in wrong})
            continue
        point = {".".join(value.path): value.value for value in values}
        runs.append(Run(sections.id(recipe), recipe, point, {value.path: value.place for value in values}))
    _report([*problems.values(), *_twins(runs, source)])
    return runs


def locate(problem: Problem, source: Source, places: Mapping[KeyPath, KeyPath]) -> Problem:
    """The problem with its place in the file: the matrix's item when the value came from there."""
    if problem.mark is not None or not problem.path:
        return problem
    path = tuple(problem.path.split("."))
    mark = source.mark(_remap(path, places))
    return Problem(
        problem.message, problem.path, mark=mark, value=problem.value, valid=problem.valid, hint=problem.hint
    )


def _remap(path: KeyPath, places: Mapping[KeyPath, KeyPath]) -> KeyPath:
    for length in range(len(path), 0, -1):
        if path[:length] in places:
            return places[path[:length]] + path[length:]
    return path


class _Sections:
    """Validated top-level sections of the recipe, each distinct value once."""

    def __init__(self, source: Source, base: dict[str, Any], recipe: Recipe) -> None:
        self._source = source
        self._base = base
        self._recipe = recipe.model_copy(update={"matrix": None})
        self._hints = get_type_hints(Recipe, include_extras=True)
        # Sections within train that nobody set; made once, since pydantic copies a default each time it is used.
        default = {key: value for key, value in dict(self._recipe.train).items() if isinstance(value, BaseModel)}
        self._defaults = {"train": default}
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        self._json: dict[int, str] = {}  # by the section's identity; `_known` and `_recipe` keep them all alive
        self._known: dict[tuple[KeyPath, ...], Any] = {}  # places of the values -> section, or None when it is wrong

    def recipe(self, values: tuple[Value, ...]) -> tuple[Recipe | None, list[Problem]]:
        touched: dict[str, list[Value]] = {}
        for value in values:
            touched.setdefault(value.path[0], []).append(value)
        update = {}
        for name, own in touched.items():
            key = tuple(value.place for value in own)
            if key not in self._known:
                self._known[key] = self._section(name, own)
            update[name] = self._known[key]
        places = {value.path: value.place for value in values}
        if any(section is None for section in update.values()):
            # Rare: the whole recipe is validated again for messages with full key paths.
            return None, _validated(self._source, _applied(self._base, values), places)[1]
        recipe = self._recipe.model_copy(update=update)
        wrong = [locate(problem, self._source, places) for problem in cross_checks(recipe)]
        return (None, wrong) if wrong else (recipe, [])

    def id(self, recipe: Recipe) -> str:
        """`run_id(recipe)`, writing out only the sections that are new."""
        sections, written = recipe.__dict__, self._json
        parts = []
        for name in HASHED:
            section = sections[name]
            if (text := written.get(id(section))) is None:
                text = written[id(section)] = f'"{name}":{section.model_dump_json()}'
            parts.append(text)
        return hashlib.sha256(f"{{{','.join(parts)}}}".encode()).hexdigest()[:10]

    def _section(self, name: str, own: Sequence[Value]) -> Any:
        if name not in self._hints:
            return None
        if name not in self._adapters:
            self._adapters[name] = TypeAdapter(self._hints[name])
        data = _applied({name: self._base.get(name)} if name in self._base else {}, own)[name]
        if isinstance(data, dict):
            data = {**self._defaults.get(name, {}), **data}
        try:
            return self._adapters[name].validate_python(data)
        except ValidationError:
            return None


def _whole(source: Source, base: dict[str, Any], first: tuple[Value, ...]) -> Recipe:
    """The first run's recipe, validated as a whole; the rest differ only in sections the matrix touches."""
    places = {value.path: value.place for value in first}
    recipe, problems = _validated(source, _applied(base, first), places)
    if recipe is None:
        # Other points' own mistakes are reported together with these where that is cheap: one value at a time.
        for value in _alternatives(source):
            swapped = tuple(value if old.path == value.path else old for old in first)
            problems += _validated(source, _applied(base, swapped), {**places, value.path: value.place})[1]
            if len(problems) > 10 * MOST_PROBLEMS:
                break
        _report(list({(problem.path, problem.message, str(problem.mark)): problem for problem in problems}.values()))
    assert recipe is not None
    return recipe


def _alternatives(source: Source) -> Iterator[Value]:
    for axis in _axes(source):
        for choice in axis[1:]:
            yield from choice


def _validated(
    source: Source, data: dict[str, Any], places: Mapping[KeyPath, KeyPath]
) -> tuple[Recipe | None, list[Problem]]:
    try:
        recipe = Recipe.model_validate({"name": source.file.stem, **data})
    except ValidationError as error:
        return None, problems_from(error, source, lambda path: _remap(path, places))
    return recipe, []


def _axes(source: Source) -> list[list[Choice]]:
    """The matrix as axes. Raises UserError with every problem in its form."""
    matrix = source.data["matrix"]
    problems: list[Problem] = []

    def wrong(message: str, place: KeyPath, hint: str = "") -> None:
        problems.append(Problem(message, ".".join(map(str, place)), mark=source.mark(place), hint=hint))

    def choices(key: Any, values: Any, place: KeyPath) -> list[Value]:
        path = tuple(str(key).split("."))
        if path in seen:
            wrong(f"`{key}` is in the matrix twice", place)
        seen.add(path)
        if path[0] in FIXED:
            wrong(f"`{path[0]}` cannot vary: it does not change what a run does", place)
        elif not all(path):
            wrong("expected a key path such as train.lr", place)
        if not isinstance(values, list) or not values:
            wrong("expected a list with at least one value", place, hint=f"such as {key}: [1, 2]")
            return []
        return [Value(path, (*place, index), value) for index, value in enumerate(values)]

    seen: set[KeyPath] = set()
    axes: list[list[Choice]] = []
    if not isinstance(matrix, dict):
        wrong("expected key paths with lists of values", ("matrix",), hint="such as train.lr: [1e-4, 2e-4]")
        _report(problems)
    for key, values in matrix.items():
        if key != "zip":
            axes.append([(value,) for value in choices(key, values, ("matrix", key))])
    groups = matrix.get("zip", [])
    if not isinstance(groups, list) or not all(isinstance(group, dict) and group for group in groups):
        wrong(
            "expected a list of groups",
            ("matrix", "zip"),
            hint="such as [{train.lr: [1e-4, 2e-4], train.seed: [1, 2]}]",
        )
        groups = []
    for number, group in enumerate(groups):
        columns = [choices(key, values, ("matrix", "zip", number, key)) for key, values in group.items()]
        if len({len(column) for column in columns}) > 1:
            counts = ", ".join(f"{key} has {len(column)}" for key, column in zip(group, columns, strict=True))
            wrong(f"zipped lists must be equally long: {counts}", ("matrix", "zip", number))
        axes.append(list(zip(*columns, strict=False)))
    _nested(seen, wrong)
    _report(problems)
    return axes


def _nested(paths: set[KeyPath], wrong: Any) -> None:
    """`tuning` and `tuning.r` on two axes would undo each other."""
    for path in sorted(paths):
        for length in range(1, len(path)):
            if path[:length] in paths:
                inner, outer = ".".join(path), ".".join(path[:length])
                wrong(f"`{inner}` lies inside `{outer}`, which the matrix sets too", ("matrix", inner))


def _applied(base: dict[str, Any], values: Sequence[Value]) -> dict[str, Any]:
    """A copy of `base` with the values put at their paths; only what lies on the paths is copied."""
    data = dict(base)
    for value in values:
        here = data
        for depth, key in enumerate(value.path[:-1]):
            inner = here.get(key)
            if isinstance(inner, str) and key in CHOICE_TAGS:
                inner = {CHOICE_TAGS[key]: inner}  # `tuning: lora` is short for `tuning: {method: lora}`
            elif inner is None:
                inner = {}
            elif not isinstance(inner, dict):
                inner = {".".join(value.path[depth + 1 :]): value.value}  # reported as an unknown key by the schema
            here[key] = dict(inner)
            here = here[key]
        here[value.path[-1]] = value.value
    return data


def _twins(runs: Sequence[Run], source: Source) -> list[Problem]:
    """Points that resolve to the same run; training them twice would be a waste and their folders would meet."""
    first: dict[str, Run] = {}
    problems = []
    for run in runs:
        other = first.setdefault(run.id, run)
        if other is not run:
            place = next((p for path, p in run.places.items() if other.places[path] != p), ("matrix",))
            shown = ", ".join(f"{key}={value}" for key, value in run.point.items())
            earlier = ", ".join(f"{key}={value}" for key, value in other.point.items())
            problems.append(Problem(f"the same run twice: {shown} equals {earlier}", "matrix", mark=source.mark(place)))
    return problems


def _report(problems: Sequence[Problem]) -> None:
    if len(problems) > MOST_PROBLEMS:
        more = Problem(f"and {len(problems) - MOST_PROBLEMS:,} more problems of this kind")
        raise UserError([*problems[:MOST_PROBLEMS], more])
    if problems:
        raise UserError(problems)
