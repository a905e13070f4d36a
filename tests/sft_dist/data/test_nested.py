from __future__ import annotations

import json

import pytest
from datasets import Dataset, IterableDataset

from sft_dist.data.nested import with_nested
from sft_dist.data.sources import load_rows, stream_rows
from sft_dist.recipe.schema import Data

PAIRS = [{"translation": {"en": "one", "fr": "un"}}, {"translation": {"en": "two", "fr": None}}, {"translation": None}]
COLUMNS = {"source": "translation.en", "target": "translation.fr"}


@pytest.mark.parametrize("extra", [{}, {"note": "a key that only some objects have"}])
def test_a_dotted_name_is_a_column_inside_objects(tmp_path, extra):
    rows = [*PAIRS, {"translation": {"en": "three", "fr": "trois", **extra}}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(source=str(tmp_path / "a.jsonl"), columns=COLUMNS)
    for table in (load_rows(data)["train"], list(stream_rows(data, "train"))):
        pairs = {(row["translation.en"], row["translation.fr"]) for row in table}
        assert pairs == {("one", "un"), ("two", None), (None, None), ("three", "trois")}


def test_a_column_whose_name_has_dots_stays(tmp_path):
    rows = Dataset.from_list([{"a.b": 1, "a": {"b": 2}}])
    assert with_nested(rows, ["a.b"])["a.b"][:] == [1]


def test_a_stream_need_not_know_its_columns():
    rows = IterableDataset.from_generator(lambda: iter(PAIRS))
    assert [row["translation.en"] for row in with_nested(rows, COLUMNS.values())] == ["one", "two", None]
