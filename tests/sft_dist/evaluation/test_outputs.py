"""One output for each input, in the order of the inputs."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from typing import Any

import pytest

from sft_dist.evaluation.inputs import Input
from sft_dist.evaluation.outputs import Prediction, json_line, plain_line, table_lines
from sft_dist.recipe.errors import UserError


def prediction(text: str, label: str = "pos", fault: str = "", **columns: Any) -> Prediction:
    description = {"label": label, "probability": 0.75, "probabilities": {"pos": 0.75}}
    return Prediction(Input("a.csv: row 1", "a.csv", {"text": text}, columns), {} if fault else description, fault)


def test_a_prediction_is_one_line_whatever_its_text_holds() -> None:
    assert plain_line(prediction("a\nb\tc\x1b[2J")) == "pos\t0.7500\ta\\nb\\tc\\x1b[2J"
    assert plain_line(prediction("a", fault="no column", id=7)) == "7\terror: no column\ta"


def test_json_has_everything_and_says_why_a_row_has_no_prediction() -> None:
    values = {"id": 7, "text": "a", "label": "pos", "probability": 0.75, "probabilities": {"pos": 0.75}}
    assert json.loads(json_line(prediction("a", id=7))) == values
    assert json.loads(json_line(prediction("a", fault="no column"))) == {"text": "a", "error": "no column"}


def test_columns_that_json_has_no_type_for_become_texts() -> None:
    day = datetime(2026, 1, 2)
    assert json.loads(json_line(prediction("a", id=day)))["id"] == "2026-01-02 00:00:00"
    assert list(table_lines([prediction("a", id=[day])], "\t"))[1].startswith('"[""2026-01-02 00:00:00""]"')


def test_a_table_has_a_row_for_each_input_and_a_header_when_the_first_row_is_bad() -> None:
    rows = [prediction("a", fault="bad", id=1), prediction('b, "c"\nd', id=2), prediction("e", fault="bad", id=3)]
    table = list(csv.reader("\n".join(table_lines(rows, ",")).splitlines(keepends=True)))
    assert table[0] == ["id", "text", "label", "probability"]
    assert table[1:] == [["1", "a", "", ""], ["2", 'b, "c"\nd', "pos", "0.75"], ["3", "e", "", ""]]
    assert list(table_lines([], ",")) == []
    assert list(table_lines(rows[:1], "\t")) == ["id\ttext", "1\ta"]


def test_a_column_that_the_prediction_has_too_is_refused() -> None:
    with pytest.raises(UserError, match="the prediction has a value 'label' too"):
        json_line(Prediction(Input("a", "a", {}, {"label": "neg"}), {"label": "pos"}))
