"""The columns that a task reads, the rows that `data.where` keeps, and values as they were written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, List, Value

from sft_dist.data.formats.dialect import undivided
from sft_dist.data.rows import BATCH, NoRowsLeft
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Data, Recipe


def columns_of(source: Dataset, recipe: Recipe) -> dict[str, str]:
    """Role -> column, of those that the task reads. Raises UserError listing the columns there are."""
    column_by_role = {}
    for role, need in recipe.task.columns.items():
        name = recipe.data.columns.get(role, role)
        if need == "required" or role in recipe.data.columns:
            require_column(source, name, role)
        elif need == "if mapped" or name not in source.column_names:
            continue
        column_by_role[role] = name
    if problem := recipe.task.missing_columns(column_by_role, source.column_names):
        raise UserError(problem)
    return column_by_role


def require_column(source: Dataset, name: str, role: str, path: str = "") -> None:
    if name not in source.column_names:
        valid = tuple(source.column_names)
        if fault := undivided(source.column_names, name):
            hint = "divide the fields by commas in a csv file and by tabs in a tsv file; data.format names the format"
            raise UserError(Problem(f"could not be read: {fault}", "data.source", value=valid[0], hint=hint))
        raise UserError(
            Problem(f"the data has no column {name!r}", path or f"data.columns.{role}", value=name, valid=valid)
        )


def select_where(source: Dataset, split: str, data: Data) -> np.ndarray:
    """Numbers of the rows that `data.where` keeps. Raises UserError when there is none."""
    keep = np.ones(len(source), dtype=bool)
    for name, value_or_values in data.where.items():
        require_column(source, name, f"where.{name}")
        convert = converter_of(source.features[name]) or (lambda value: value)
        allowed = value_or_values if isinstance(value_or_values, list) else [value_or_values]
        seen_values: Counter[str] = Counter()
        hits = []
        for batch in source.select_columns([name]).iter(BATCH):
            values = [convert(value) for value in batch[name]]
            hits += [any(_equals(value, requested) for requested in allowed) for value in values]
            if len(seen_values) < 1000:
                seen_values.update(map(repr, values))
        keep &= np.array(hits, dtype=bool)
        if not keep.any():
            valid = tuple(text for text, _ in seen_values.most_common(8))
            raise NoRowsLeft(
                Problem(f"no row of {split} is left", f"data.where.{name}", value=repr(value_or_values), valid=valid)
            )
    return np.flatnonzero(keep)


def _equals(value: Any, requested: str | float | bool) -> bool:
    """Whether a row has the value that a recipe names. Files of texts have texts for numbers and truth values."""
    if isinstance(value, str) and isinstance(requested, bool):
        return value.lower() == str(requested).lower()
    if isinstance(value, str) and not isinstance(requested, str):
        try:
            return float(value) == requested
        except ValueError:
            return False
    return bool(value == requested)


def converter_of(feature: Any) -> Callable[[Any], Any] | None:
    """How values of a column become what was written: class numbers their names, and floats of 16 and 32 bits the shortest
    decimal, since 1.1 would otherwise be the text 1.100000023841858. None where they are so already."""
    if isinstance(feature, Value) and feature.dtype in ("float16", "float32"):
        dtype = np.dtype(feature.dtype).type
        return lambda number: None if number is None else float(str(dtype(number)))
    return naming_of(feature)


def naming_of(feature: Any) -> Callable[[Any], Any] | None:
    """Class numbers -> class names, wherever they are in a column's values; None when there are none."""
    if isinstance(feature, ClassLabel):
        return lambda number: None if number is None or number < 0 else feature.int2str(number)
    if isinstance(feature, List) and (inner := naming_of(feature.feature)):
        return lambda values: None if values is None else [inner(value) for value in values]
    if isinstance(feature, dict) and (converters := {key: naming_of(value) for key, value in feature.items()}):
        changed = {key: convert for key, convert in converters.items() if convert}
        if changed:
            return lambda value: value and {**value, **{key: convert(value[key]) for key, convert in changed.items()}}
    return None
