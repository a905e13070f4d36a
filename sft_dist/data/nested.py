"""Columns inside objects: `translation.en` is the value `en` of the objects in the column `translation`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from datasets import Dataset, Features, IterableDataset

_Rows = TypeVar("_Rows", Dataset, IterableDataset)


def with_nested(rows: _Rows, names: Iterable[str]) -> _Rows:
    """Returns the rows with a column for each dotted name that leads into an object. A column whose own name has dots stays
    what it is."""
    columns = rows.column_names
    nested = [name for name in names if _leads_inside(name, columns)]
    if not nested:
        return rows
    known = rows.features if columns is not None else None
    features = None
    if known is not None and None not in (inner := [_feature(known, name) for name in nested]):
        features = Features({**known, **dict(zip(nested, inner, strict=True))})
    return rows.map(_Values(nested), features=features)


def _leads_inside(name: str, columns: list[str] | None) -> bool:
    """A stream need not know its columns."""
    return "." in name and (columns is None or (name not in columns and name.split(".")[0] in columns))


def _feature(features: Mapping[str, Any], name: str) -> Any:
    """Returns None where the objects are of no one structure."""
    feature: Any = features
    for key in name.split("."):
        feature = feature.get(key) if isinstance(feature, Mapping) else None
    return feature


class _Values:
    """Sent to other processes."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: _value(row, name) for name in self.names if name not in row}


def _value(row: Any, name: str) -> Any:
    for key in name.split("."):
        row = row.get(key) if isinstance(row, Mapping) else None
    return row
