"""Columns by their roles, class numbers by their names, and the rows that `where` keeps."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from sft_dist.data.columns import naming_of
from sft_dist.data.sources import load_rows
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Data
from tests.sft_dist.data.row_files import ROWS, mistake, prepared, write_csv, write_jsonl


def test_class_numbers_of_a_data_set_become_their_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(10)] + [{"text": "unknown", "label": -1}]
    Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    found = load_rows(Data(source=str(tmp_path / "saved")))["train"]
    assert [*map(naming_of(found.features["label"]), found["label"])] == ["neg", "pos"] * 5 + [None]


def test_lists_of_class_numbers_become_lists_of_names(tmp_path):
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["fun", "sad", "long"]))})
    rows = [{"text": "a", "label": [0, 2]}, {"text": "b", "label": []}, {"text": "c", "label": None}]
    Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    found = load_rows(Data(source=str(tmp_path / "saved")))["train"]
    assert [*map(naming_of(found.features["label"]), found["label"])] == [["fun", "long"], [], None]


def test_columns_are_found_by_their_role(tmp_path):
    rows = [{"review": f"r{n}", "reply": f"a{n}", "stars": n % 2} for n in range(20)]
    found = prepared(
        write_csv(tmp_path / "rows.csv", rows), columns={"text": "review", "text_pair": "reply", "label": "stars"}
    )
    train = found.splits["train"]
    assert [text.replace("r", "a") for text in train.column("text")] == train.column("text_pair")


def test_a_missing_column_is_named_with_those_there_are(rows_file):
    said = mistake(rows_file, columns={"text": "review"})
    assert "data.columns.text: the data has no column 'review'" in said
    assert "valid: text, label, lang" in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text:label\na:b\n", "its fields are divided by ':'"),
        ("a.csv", "text^label\na^b\n", "its fields are divided by '^'"),
        ("a.csv", "text label\na b\n", "its fields are divided by ' '"),
        ("a.tsv", "text,label\na,b\n", "its fields are divided by ','"),
        ("a.tsv", "text    label\na    b\n", "its fields are divided by '    '"),
        ("a.csv", '{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n', "it holds JSON"),
    ],
)
def test_a_separator_is_blamed_and_not_a_column(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    message = mistake(tmp_path / name)
    assert message.startswith(f"data.source: could not be read: {said}")


def test_where_compares_numbers_with_the_texts_of_a_csv(tmp_path):
    file = write_csv(tmp_path / "rows.csv", [{"text": f"text {n}", "label": n % 3 + 0.0} for n in range(30)])
    assert prepared(file, where={"label": [0, 1]}).task.labels == ["0.0", "1.0"]
    assert prepared(file, where={"label": ["0.0", "2.0"]}).task.labels == ["0.0", "2.0"]
    with pytest.raises(UserError, match="no row of train is left"):
        prepared(file, where={"label": "0"})


def test_where_keeps_equal_values_and_members_of_a_list(tmp_path):
    rows = [{"text": f"t{n}", "label": n % 2, "year": 2000 + n % 4, "kept": n % 3 == 0} for n in range(40)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    both = {"year": [2000, 2001], "kept": True}
    found = prepared(file, where=both, split={"test": 0.0, "validation": 0.0})
    wanted = [n for n, row in enumerate(rows) if row["year"] < 2002 and row["kept"]]
    assert found.splits["train"].ids.tolist() == wanted
    assert found.dropped["where"] == 40 - len(wanted)


def test_a_filter_on_a_missing_column_is_named(rows_file):
    assert "where.language" in mistake(rows_file, where={"language": "en"})


def test_a_filter_that_leaves_nothing_shows_the_values_there_are(rows_file):
    said = mistake(rows_file, where={"lang": "EN"})
    assert "data.where.lang: no row of train is left" in said
    assert "valid: 'en', 'de', 'fr'" in said


def test_a_filter_on_a_column_of_lists_is_a_readable_mistake(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{**row, "tags": ["a"]} for row in ROWS])
    assert "data.where.tags: no row of train is left" in mistake(file, where={"tags": "a"})
