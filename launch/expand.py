"""Expands a recipe's matrix into runs: the grid over all axes, where a zipped group counts as one axis.

Ten thousand points have to be quick, so a section of the recipe (train, tuning, ...) is validated once for each distinct value
it takes, and runs are assembled from validated sections.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from sft_dist.recipe.checks import cross_checks
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.explain import problems_from
from sft_dist.recipe.load import validate
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.source import Source
from sft_dist.run.folder import NOT_IN_ID, run_id

MAX_RUNS = 100_000
MAX_PROBLEMS = 50
FIXED = ("name", "description", "base", "matrix", "search")  # not part of a run's identity, so they cannot vary
HASHED = tuple(name for name in Recipe.model_fields if name not in FIXED)  # as in run_id
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
    origins: Mapping[KeyPath, KeyPath] = field(default_factory=dict)  # where in the matrix each value comes from


@dataclass(frozen=True)
class Value:
    """One value of one key path, and where it comes from in the recipe."""

    path: KeyPath  # ("train", "lr")
    origin: KeyPath  # ("matrix", "train.lr", 0)
    value: Any


AxisPoint = tuple[Value, ...]  # values that vary together: one of a grid axis, several of a zipped group


def expand(source: Source) -> list[Run]:
    """Returns all runs, in the order of the matrix (the last axis changes fastest). Raises UserError with every problem."""
    if not source.data.get("matrix"):
        single = validate(source)
        return [Run(run_id(single), single, {})]
    axes = _axes(source)
    size = math.prod(len(axis) for axis in axes)
    if size > MAX_RUNS:
        product = " x ".join(str(len(axis)) for axis in axes)
        raise UserError(
            Problem(
                f"{product} = {size:,} runs; at most {MAX_RUNS:,} are allowed",
                path="matrix",
                mark=source.mark(("matrix",)),
            )
        )
    base = {key: value for key, value in source.data.items() if key != "matrix"}
    first = tuple(value for axis in axes for value in axis[0])
    sections = _Sections(source, base, _first_recipe(source, base, first))
    runs: list[Run] = []
    problems: dict[tuple[str, str, str], Problem] = {}
    for choices in itertools.product(*axes):
        values = tuple(itertools.chain.from_iterable(choices))
        recipe, of_recipe = sections.recipe(values)
        if recipe is None:
            problems.update({(problem.path, problem.message, str(problem.mark)): problem for problem in of_recipe})
            continue
        point = {".".join(value.path): value.value for value in values}
        runs.append(Run(sections.id(recipe), recipe, point, {value.path: value.origin for value in values}))
    _report([*problems.values(), *_duplicate_runs(runs, source)])
    return runs


def run_at(source: Source, values: Sequence[Value], cross_checked: bool = True) -> Run:
    """Returns the run of one point, without the recipe's matrix and search. Outer key paths come before inner ones. Raises
    UserError with every problem; of rules between settings only when `cross_checked`."""
    base = {key: value for key, value in source.data.items() if key not in ("matrix", "search")}
    origins = {value.path: value.origin for value in values}
    recipe, problems = _validate_recipe(source, applied(base, values), origins)
    if recipe is not None and cross_checked:
        problems = [locate(problem, source, origins) for problem in cross_checks(recipe)]
    _report(problems)
    assert recipe is not None
    return Run(run_id(recipe), recipe, {".".join(value.path): value.value for value in values}, origins)


def locate(problem: Problem, source: Source, origins: Mapping[KeyPath, KeyPath]) -> Problem:
    """Returns the problem with its position in the file: that of the matrix item when the value comes from there."""
    if problem.mark is not None or not problem.path:
        return problem
    path = tuple(problem.path.split("."))
    mark = source.mark(_remap(path, origins))
    return Problem(
        problem.message, problem.path, mark=mark, value=problem.value, valid=problem.valid, hint=problem.hint
    )


def _remap(path: KeyPath, origins: Mapping[KeyPath, KeyPath]) -> KeyPath:
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return origins[path[:length]] + path[length:]
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
        self._json: dict[int, str] = {}  # by the section's identity; `_validated` and `_recipe` keep them all alive
        self._validated: dict[tuple[KeyPath, ...], Any] = {}  # origins of its values -> section, or None when invalid

    def recipe(self, values: tuple[Value, ...]) -> tuple[Recipe | None, list[Problem]]:
        values_by_section: dict[str, list[Value]] = {}
        for value in values:
            values_by_section.setdefault(value.path[0], []).append(value)
        update = {}
        for name, section_values in values_by_section.items():
            key = tuple(value.origin for value in section_values)
            if key not in self._validated:
                self._validated[key] = self._section(name, section_values)
            update[name] = self._validated[key]
        origins = {value.path: value.origin for value in values}
        if any(section is None for section in update.values()):
            # Rare: all of the recipe is validated again for messages with full key paths.
            return None, _validate_recipe(self._source, applied(self._base, values), origins)[1]
        recipe = self._recipe.model_copy(update=update)
        problems = [locate(problem, self._source, origins) for problem in cross_checks(recipe)]
        return (None, problems) if problems else (recipe, [])

    def id(self, recipe: Recipe) -> str:
        """Returns `run_id(recipe)`, serializing only the sections that are new."""
        sections, json_by_id = recipe.__dict__, self._json
        texts = []
        for name in HASHED:
            section = sections[name]
            if (text := json_by_id.get(id(section))) is None:
                content = section.model_dump_json(exclude=NOT_IN_ID.get(name))
                text = json_by_id[id(section)] = f'"{name}":{content}'
            texts.append(text)
        return hashlib.sha256(f"{{{','.join(texts)}}}".encode()).hexdigest()[:10]

    def _section(self, name: str, values: Sequence[Value]) -> Any:
        if name not in self._hints:
            return None
        if name not in self._adapters:
            self._adapters[name] = TypeAdapter(self._hints[name])
        data = applied({name: self._base.get(name)} if name in self._base else {}, values)[name]
        if isinstance(data, dict):
            data = {**self._defaults.get(name, {}), **data}
        try:
            return self._adapters[name].validate_python(data)
        except ValidationError:
            return None


def _first_recipe(source: Source, base: dict[str, Any], first: tuple[Value, ...]) -> Recipe:
    """Returns the first run's recipe, validated completely; the others differ only in sections that the matrix sets."""
    origins = {value.path: value.origin for value in first}
    recipe, problems = _validate_recipe(source, applied(base, first), origins)
    if recipe is None:
        # Problems of other points are reported together with these where that is cheap: one value at a time.
        for value in _alternatives(source):
            values = tuple(value if old.path == value.path else old for old in first)
            problems += _validate_recipe(source, applied(base, values), {**origins, value.path: value.origin})[1]
            if len(problems) > 10 * MAX_PROBLEMS:
                break
        _report(list({(problem.path, problem.message, str(problem.mark)): problem for problem in problems}.values()))
    assert recipe is not None
    return recipe


def _alternatives(source: Source) -> Iterator[Value]:
    for axis in _axes(source):
        for point in axis[1:]:
            yield from point


def _validate_recipe(
    source: Source, data: dict[str, Any], origins: Mapping[KeyPath, KeyPath]
) -> tuple[Recipe | None, list[Problem]]:
    try:
        recipe = Recipe.model_validate({"name": source.file.stem, **data})
    except ValidationError as error:
        return None, problems_from(error, source, lambda path: _remap(path, origins))
    return recipe, []


def _axes(source: Source) -> list[list[AxisPoint]]:
    """Returns the matrix as axes. Raises UserError with every problem of its form."""
    matrix = source.data["matrix"]
    problems: list[Problem] = []

    def report(message: str, path: KeyPath, hint: str = "") -> None:
        problems.append(Problem(message, ".".join(map(str, path)), mark=source.mark(path), hint=hint))

    def axis_values(key: Any, values: Any, origin: KeyPath) -> list[Value]:
        path = tuple(str(key).split("."))
        if path in paths:
            report(f"`{key}` is in the matrix twice", origin)
        paths.add(path)
        if path[0] in FIXED:
            report(f"`{path[0]}` cannot vary: it does not change what a run does", origin)
        elif not all(path):
            report("expected a key path such as train.lr", origin)
        if not isinstance(values, list) or not values:
            report("expected a list with at least one value", origin, hint=f"such as {key}: [1, 2]")
            return []
        return [Value(path, (*origin, index), value) for index, value in enumerate(values)]

    paths: set[KeyPath] = set()
    axes: list[list[AxisPoint]] = []
    if not isinstance(matrix, dict):
        report("expected key paths with lists of values", ("matrix",), hint="such as train.lr: [1e-4, 2e-4]")
        _report(problems)
    for key, values in matrix.items():
        if key != "zip":
            axes.append([(value,) for value in axis_values(key, values, ("matrix", key))])
    groups = matrix.get("zip", [])
    if not isinstance(groups, list) or not all(isinstance(group, dict) and group for group in groups):
        report(
            "expected a list of groups",
            ("matrix", "zip"),
            hint="such as [{train.lr: [1e-4, 2e-4], train.seed: [1, 2]}]",
        )
        groups = []
    for number, group in enumerate(groups):
        columns = [axis_values(key, values, ("matrix", "zip", number, key)) for key, values in group.items()]
        if len({len(column) for column in columns}) > 1:
            counts = ", ".join(f"{key} has {len(column)}" for key, column in zip(group, columns, strict=True))
            report(f"zipped lists must be equally long: {counts}", ("matrix", "zip", number))
        axes.append(list(zip(*columns, strict=False)))
    _check_nesting(paths, report)
    _report(problems)
    return axes


def _check_nesting(paths: set[KeyPath], report: Callable[[str, KeyPath], None]) -> None:
    """`tuning` and `tuning.r` on two axes would overwrite each other."""
    for path in sorted(paths):
        for length in range(1, len(path)):
            if path[:length] in paths:
                inner, outer = ".".join(path), ".".join(path[:length])
                report(f"`{inner}` is inside `{outer}`, which the matrix sets, too", ("matrix", inner))


def value_of(path: str, value: Any, origin: KeyPath = ()) -> Value:
    """Returns a value of a dotted key path."""
    return Value(tuple(path.split(".")), origin, value)


def applied(base: dict[str, Any], values: Sequence[Value]) -> dict[str, Any]:
    """Returns a copy of `base` with the values set; only the dictionaries on their paths are copied."""
    data = dict(base)
    for value in values:
        section = data
        for depth, key in enumerate(value.path[:-1]):
            inner = section.get(key)
            if isinstance(inner, str) and key in CHOICE_TAGS:
                inner = {CHOICE_TAGS[key]: inner}  # `tuning: lora` is short for `tuning: {method: lora}`
            elif inner is None:
                inner = {}
            elif not isinstance(inner, dict):
                inner = {".".join(value.path[depth + 1 :]): value.value}  # reported as an unknown key by the schema
            section[key] = dict(inner)
            section = section[key]
        section[value.path[-1]] = value.value
    return data


def _duplicate_runs(runs: Sequence[Run], source: Source) -> list[Problem]:
    """Reports points that resolve to the same run: it would be trained twice, and in one folder."""
    first: dict[str, Run] = {}
    problems = []
    for run in runs:
        earlier = first.setdefault(run.id, run)
        if earlier is not run:
            path = next((p for key, p in run.origins.items() if earlier.origins[key] != p), ("matrix",))
            points = [", ".join(f"{key}={value}" for key, value in twin.point.items()) for twin in (run, earlier)]
            message = f"the same run twice: {points[0]} equals {points[1]}"
            problems.append(Problem(message, "matrix", mark=source.mark(path)))
    return problems


def _report(problems: Sequence[Problem]) -> None:
    if len(problems) > MAX_PROBLEMS:
        remainder = Problem(f"and {len(problems) - MAX_PROBLEMS:,} more problems")
        raise UserError([*problems[:MAX_PROBLEMS], remainder])
    if problems:
        raise UserError(problems)
