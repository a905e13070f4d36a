"""The points that a search may try: the recipe's `search.space`. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from launch.expand import FIXED, MAX_PROBLEMS, Run, run_at, value_of
from sft_dist.recipe.errors import Problem, UserError, collected
from sft_dist.recipe.schema import Dimension, Search
from sft_dist.recipe.source import Source
from sft_dist.recipe.suggest import similar_to

Point = dict[str, Any]  # key path -> value
MAX_GRID = 100_000
SCALARS = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Space:
    """Dimensions by their key path, each behind those it depends on."""

    dimensions: Mapping[str, Dimension]

    def is_active(self, path: str, point: Mapping[str, Any]) -> bool:
        """Whether a dimension has a value, given the values of the dimensions before it."""
        conditions = self.dimensions[path].when.items()
        return all(parent in point and point[parent] in _as_list(values) for parent, values in conditions)

    def corners(self) -> Iterator[Point]:
        """Yields points that together have both bounds and every choice of each dimension."""
        for path, dimension in self.dimensions.items():
            for value in _ends(dimension):
                yield self._completed({**self._required(path), path: value})

    def grid(self) -> Iterator[Point]:
        """Yields every point; the last dimension changes fastest. Only for dimensions with finitely many values."""
        yield from self._grid({}, list(self.dimensions))

    def label(self, path: str, value: Any) -> Any:
        """Returns a value as a study stores it: lists and mappings as JSON."""
        return value if isinstance(value, SCALARS) else json.dumps(value)

    def value(self, path: str, label: Any) -> Any:
        """Returns the value of a label."""
        choices = self.dimensions[path].choice
        return label if choices is None else next(value for value in choices if self.label(path, value) == label)

    def _grid(self, point: Point, paths: Sequence[str]) -> Iterator[Point]:
        if not paths:
            yield point
        elif not self.is_active(paths[0], point):
            yield from self._grid(point, paths[1:])
        else:
            for value in _all_values(self.dimensions[paths[0]]):
                yield from self._grid({**point, paths[0]: value}, paths[1:])

    def _required(self, path: str) -> Point:
        """Returns values of other dimensions that a dimension needs."""
        point: Point = {}
        for parent, values in self.dimensions[path].when.items():
            point |= {**self._required(parent), parent: _as_list(values)[0]}
        return point

    def _completed(self, point: Point) -> Point:
        """Returns the point with the first value of each other dimension that is active in it, in the order of the space."""
        completed: Point = {}
        for path, dimension in self.dimensions.items():
            if self.is_active(path, completed):
                completed[path] = point[path] if path in point else _ends(dimension)[0]
        return completed


def read_space(source: Source, search: Search) -> Space:
    """Returns the space of a recipe. Raises UserError with every problem: of its form, and of values that no recipe can have."""
    problems = [*_wrong_paths(source, search), *_wrong_conditions(source, search), *_wrong_kinds(source, search)]
    if problems:
        raise UserError(problems)
    space = Space({path: search.space[path] for path in _ordered(source, search)})
    for point in space.corners():
        with collected(problems):
            run_of(source, point, schema_only=True)
    if unique := list(dict.fromkeys(problems)):
        raise UserError(unique[:MAX_PROBLEMS])
    return space


def run_of(source: Source, point: Mapping[str, Any], schema_only: bool = False) -> Run:
    """Returns the run of a point. `schema_only`: rules between settings are not checked. Raises UserError, with places in the space."""
    paths = sorted(point, key=lambda path: path.count("."))  # an optimizer comes before its settings
    values = [value_of(path, point[path], ("search", "space", path)) for path in paths]
    return run_at(source, values, cross_checked=not schema_only)


def _mark(source: Source, path: str, *keys: str) -> dict[str, Any]:
    return {"path": f"search.space.{path}", "mark": source.mark(("search", "space", path, *keys))}


def _wrong_paths(source: Source, search: Search) -> Iterator[Problem]:
    for path in search.space:
        if path.split(".")[0] in FIXED:
            yield Problem("cannot vary: it does not change what a run does", **_mark(source, path))
        elif not all(path.split(".")):
            yield Problem("expected a key path such as train.lr", **_mark(source, path))


def _wrong_conditions(source: Source, search: Search) -> Iterator[Problem]:
    for path, dimension in search.space.items():
        for parent, values in dimension.when.items():
            if parent not in search.space:
                hint = similar_to(parent, search.space)
                yield Problem(
                    "`when` names no dimension of the space",
                    **_mark(source, path, "when"),
                    value=parent,
                    valid=tuple(search.space),
                    hint=hint,
                )
                continue
            choices = search.space[parent].choice
            for value in _as_list(values) if choices is not None else ():
                if value not in (choices or ()):
                    valid = tuple(map(str, choices or ()))
                    message = f"{parent} never has this value"
                    yield Problem(message, **_mark(source, path, "when"), value=str(value), valid=valid)


def _wrong_kinds(source: Source, search: Search) -> Iterator[Problem]:
    finite = 1
    for path, dimension in search.space.items():
        choices = dimension.choice or []
        if len({json.dumps(value, default=str) for value in choices}) < len(choices):
            yield Problem("a choice stands there twice", **_mark(source, path))
        if search.sampler == "grid" and not _is_finite(dimension):
            hint = "give `choice` or `int`, or another sampler"
            yield Problem("a grid needs finitely many values", **_mark(source, path), hint=hint)
        elif search.sampler == "grid":
            finite *= len(_all_values(dimension))
    if finite > MAX_GRID:
        mark = source.mark(("search", "space"))
        yield Problem(f"the grid has {finite:,} points; at most {MAX_GRID:,} are allowed", "search.space", mark=mark)


def _ordered(source: Source, search: Search) -> list[str]:
    """Returns key paths, each behind its conditions and behind the paths around it. Raises UserError for a cycle."""
    graph = {path: [*dimension.when, *_outer(path, search.space)] for path, dimension in search.space.items()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        cycle = " -> ".join(error.args[1])
        mark = source.mark(("search", "space"))
        raise UserError(Problem(f"conditions form a cycle: {cycle}", "search.space", mark=mark)) from None


def _outer(path: str, paths: Mapping[str, Any]) -> list[str]:
    return [outer for outer in paths if path.startswith(f"{outer}.")]


def _as_list(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _ends(dimension: Dimension) -> list[Any]:
    return list(dimension.choice or dimension.log or dimension.float or dimension.int or ())


def _is_finite(dimension: Dimension) -> bool:
    return dimension.choice is not None or dimension.int is not None


def _all_values(dimension: Dimension) -> Sequence[Any]:
    if dimension.int is not None:
        return range(dimension.int[0], dimension.int[1] + 1)
    return dimension.choice or []
