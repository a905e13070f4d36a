"""Columns of the source by whose values scores are divided: `evaluate.slices`.

Tasks do not store these columns, and they decide nothing about rows, so they are read beside the prepared rows, when an evaluation
or a plan asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, Value

from sft_dist.data.cached_folder import cache_key, cached_folder
from sft_dist.data.clean import type_name
from sft_dist.data.columns import converter_of, require_column
from sft_dist.data.nested import with_nested
from sft_dist.data.rows import BATCH, ROW, Rows
from sft_dist.data.sources import load_rows
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe

if TYPE_CHECKING:
    from sft_dist.data.prepare import Prepared

MAX_VALUES = 50  # of a column: each is a score of its own, and a test among so many finds nothing in small slices
MISSING = "(none)"
_PATH = "evaluate.slices"


def slice_columns(data: Prepared, recipe: Recipe) -> dict[str, Rows]:
    """Returns split -> the columns that `evaluate.slices` names, of each row of the splits that are scored. Raises UserError for a
    column that does not exist, or that divides too finely."""
    columns = recipe.evaluate.slices
    splits = [split for split in data.splits if split != "train" or "train" in recipe.evaluate.report_on]
    if not columns:
        return {}
    folder = data.folder / f"slices-{cache_key(*splits, '', *columns)}"
    with cached_folder(folder, lambda to: _build(data, recipe, splits, to)) as built_folder:
        return {split: Rows(Dataset.load_from_disk(str(built_folder / split))) for split in splits}


def _build(data: Prepared, recipe: Recipe, splits: Sequence[str], to: Path) -> None:
    columns = recipe.evaluate.slices
    names: dict[str, set[str]] = {column: set() for column in columns}
    sources = load_rows(recipe.data, [*recipe.task.media])
    for split in splits:
        # A split that the source does not have was held out of its training rows.
        source = with_nested(sources.get(split, sources.get("train")), columns)
        row_ids = data.splits[split].ids
        texts = {column: _texts(source, column, row_ids, split) for column in columns}
        for column in columns:
            _require_few(names[column].union(texts[column]), column)
            names[column].update(texts[column])
        features = Features({**dict.fromkeys(columns, Value("string")), ROW: Value("int64")})
        Dataset.from_dict({**texts, ROW: row_ids}, features=features).save_to_disk(str(to / split))


def _texts(source: Dataset, column: str, row_ids: np.ndarray, split: str) -> list[str]:
    """Returns the names of the slices of some rows. Raises UserError naming the row."""
    require_column(source, column, column, _PATH)
    convert: Callable[[Any], Any] = converter_of(source.features[column]) or (lambda value: value)
    table = source.select_columns([column]).select(row_ids)
    values = (value for batch in table.iter(BATCH) for value in batch[column])
    return [slice_name(convert(value), f"{split} row {row}") for value, row in zip(values, row_ids, strict=True)]


def slice_name(value: Any, row: str) -> str:
    """Returns the text of a value; 1 and 1.0 are the same. Raises UserError for lists and objects."""
    if value is None or value == "" or value != value:
        return MISSING
    if isinstance(value, (list, dict, bytes)):
        message = f"{row}: a slice is named by a text or a number, not {type_name(value)}"
        raise UserError(Problem(message, _PATH, value=repr(value)[:200]))
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _require_few(names: set[str], column: str) -> None:
    if len(names) > MAX_VALUES:
        message = f"the column {column!r} has {len(names):,} values; scores are divided by at most {MAX_VALUES}"
        hint = "name a column with fewer values, or add one that groups them"
        raise UserError(Problem(message, _PATH, value=column, hint=hint))
