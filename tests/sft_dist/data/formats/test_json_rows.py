import json

import pytest

from sft_dist.data.formats.json_rows import read_json, table_of_rows
from sft_dist.recipe.errors import UserError


def read(path, content):
    path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
    return list(read_json([str(path)], streaming=False))


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([{"text": "2001-01-01"}, {"text": "2002-02-02 10:00"}], id="dates"),
        pytest.param([{"text": None}] * 3000 + [{"text": "late"}], id="null first"),
        pytest.param([{"number": 1}, {"number": None}], id="null beside numbers"),
        pytest.param([{"number": 90071992547409931}, {"number": None}], id="long numbers"),
        pytest.param([{"number": 1}, {"number": 1.5}], id="whole numbers and fractions"),
        pytest.param([{"is_good": True}, {"is_good": False}], id="truth values"),
        pytest.param([{"tags": ["a", "b"]}, {"tags": []}, {"tags": None}], id="lists"),
        pytest.param([{"turns": [{"role": "user", "content": "2001-01-01"}]}], id="objects in lists"),
        pytest.param([{"call": {"city": "Paris"}}, {"call": {"day": "2001-01-01"}}], id="objects with other keys"),
        pytest.param([{"value": [1]}, {"value": "x"}], id="no one structure"),
    ],
)
def test_rows_are_what_the_file_says(tmp_path, rows):
    assert read(tmp_path / "a.jsonl", rows) == rows


def test_numbers_among_texts_are_texts(tmp_path):
    rows = read(tmp_path / "a.jsonl", [{"label": 1}, {"label": "1"}, {"label": 2.50}, {"label": True}])
    assert [row["label"] for row in rows] == ["1", "1", "2.5", "true"]


def test_numbers_that_no_type_holds_are_texts_of_all_their_digits(tmp_path):
    rows = read(tmp_path / "a.jsonl", [{"id": 2**70}, {"id": 1}])
    assert [row["id"] for row in rows] == [str(2**70), "1"]


def test_a_key_may_come_late(tmp_path):
    rows = read(tmp_path / "a.jsonl", [{"text": "a"}] * 3000 + [{"text": "b", "label": "c"}])
    assert [rows[0], rows[-1]] == [{"text": "a", "label": None}, {"text": "b", "label": "c"}]


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '[\n  {"text": "a"},\n  {"text": "b"}\n]\n',
        '["a", "b"]',
        '{\n "text": "a"\n}\n{\n "text": "b"\n}',
        '{"text": {"0": "a", "1": "b"}}',
    ],
)
def test_documents_hold_rows_too(tmp_path, content):
    assert read(tmp_path / "a.json", content) == [{"text": "a"}, {"text": "b"}]


def test_half_a_surrogate_pair_is_refused_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"a.jsonl, line 2: half of a surrogate pair"):
        read(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n')


def test_rows_of_a_stream_are_a_table_of_the_same_types():
    table = table_of_rows([{"text": "2001-01-01", "n": 1}, {"text": None, "n": "x"}])
    assert list(table) == [{"text": "2001-01-01", "n": "1"}, {"text": None, "n": "x"}]


@pytest.mark.parametrize("number", [2**70, -(2**70), 2**63])
def test_whole_numbers_beyond_64_bits_inside_mixed_columns_are_texts(tmp_path, number):
    """A column of lists and objects is stored as JSON, and the reader of `datasets` ends at 64 bits."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"messages": [{"role": "user"}]}, {"messages": {"a": [number, 7]}}]))
    assert read_json([str(file)], streaming=False)[1] == {"messages": {"a": [str(number), 7]}}


@pytest.mark.parametrize("layout", ["{row}\n", "[{row}]", "{row}\n\n{row}"])
def test_nan_is_a_missing_value_and_infinity_is_refused_by_row(tmp_path, layout):
    rows = read(tmp_path / "a.jsonl", layout.replace("{row}", '{"text": NaN, "n": 1}'))
    assert rows[0] == {"text": None, "n": 1}
    for value in ("Infinity", "-Infinity"):
        with pytest.raises(UserError, match=f"a.jsonl.*: {value} is not a number of JSON"):
            read(tmp_path / "a.jsonl", layout.replace("{row}", '{"text": "a", "n": VALUE}'.replace("VALUE", value)))
