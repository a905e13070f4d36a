"""Columns that divide scores are read beside the prepared rows, whichever split of the source these came from."""

from __future__ import annotations

import pytest

from sft_dist.data.slices import MAX_VALUES, MISSING, slice_columns, slice_name
from sft_dist.recipe.errors import UserError
from tests.sft_dist.data.row_files import ROWS, prepared, recipe_of, write_csv, write_jsonl


def slices_of(source, columns, **data):
    recipe = recipe_of(source, **data).model_copy(deep=True)
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"slices": columns})})
    return slice_columns(prepared(source, **data), recipe)


def test_rows_that_were_held_out_keep_their_values(tmp_path):
    source = str(write_csv(tmp_path / "rows.csv", ROWS))
    columns = slices_of(
        source, ["lang"], where={"lang": ["en", "de"]}, split={"validation": 0.2, "test": 0.2, "stratify": False}
    )
    assert set(columns) == {"validation", "test"}
    for rows in columns.values():
        assert rows.column("lang") == [ROWS[row]["lang"] for row in rows.ids]
    assert slices_of(source, []) == {}


def test_a_split_of_its_own_has_its_own_values(tmp_path):
    more = [{"text": f"more {n}", "label": ["neg", "pos"][n % 2], "meta": {"year": 2000 + n % 2}} for n in range(8)]
    train = str(write_jsonl(tmp_path / "train.jsonl", [{**row, "meta": {"year": 1999}} for row in ROWS]))
    source = {"train": train, "test": str(write_jsonl(tmp_path / "test.jsonl", more))}
    columns = slices_of(source, ["meta.year", "label"])
    assert columns["test"].column("meta.year") == ["2000", "2001"] * 4
    assert set(columns["validation"].column("meta.year")) == {"1999"}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("text", f"the column 'text' has 60 values; scores are divided by at most {MAX_VALUES}"),
        ("language", "no column 'language'"),
    ],
)
def test_a_column_that_cannot_divide_is_refused(tmp_path, column, message):
    rows = [{**ROWS[n % 30], "text": f"text {n}"} for n in range(240)]
    source = str(write_csv(tmp_path / "rows.csv", rows))
    with pytest.raises(UserError, match=message) as caught:
        slices_of(source, [column], split={"validation": 0.125, "test": 0.125})
    assert [problem.path for problem in caught.value.problems] == ["evaluate.slices"]


def test_names_of_slices():
    values = [1.0, 1, "1", True, "", None, float("nan"), 2.5]
    assert [slice_name(value, "test row 0") for value in values] == ["1", "1", "1", "true", *[MISSING] * 3, "2.5"]
    with pytest.raises(UserError, match="test row 3: a slice is named by a text or a number, not a list"):
        slice_name(["a"], "test row 3")
