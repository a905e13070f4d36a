"""Rows are cleaned as they are read, and a bad value is named by its row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_dist.recipe.errors import UserError
from tests.sft_dist.data.row_files import ROWS, mistake, prepared_for, write_jsonl


def test_conversations_and_sentences_are_cleaned_as_texts_are(tmp_path):
    def chat(question: str, answer: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    chats = [chat("hi", "ho"), chat(" hi", "ho\n"), chat("hi", "h" * 50), chat("hi", " "), chat(" ", "ho")]
    found = prepared_for("instruction-tuning", chats, tmp_path / "chats.jsonl", max_chars=40)
    assert found.dropped == {"where": 0, "duplicate": 1, "too long": 1, "empty answer": 1, "empty text": 1}
    with pytest.raises(UserError, match="row 3 of train: empty answer"):
        prepared_for("instruction-tuning", chats, tmp_path / "chats.jsonl", drop_empty=False)

    sentences = [{"tokens": words, "tags": ["O", "B-x"]} for words in (["a", "b"], ["a ", "b"], ["a", "b" * 50])]
    found = prepared_for("token-classification", sentences, tmp_path / "sentences.jsonl", max_chars=40)
    assert found.dropped == {"where": 0, "duplicate": 1, "too long": 1}


def test_data_without_columns_of_conversations_are_refused(tmp_path):
    with pytest.raises(UserError, match="no column has conversations, or questions and answers"):
        prepared_for("instruction-tuning", [{"text": "### Human: hi"}], tmp_path / "rows.jsonl")
    dolly = [{"instruction": "say 0", "context": "", "response": "0", "category": "qa"}]
    assert (
        '"content": "0"'
        in prepared_for("instruction-tuning", dolly, tmp_path / "rows.jsonl").splits["train"].column("chat")[0]
    )


def test_an_empty_text_stops_when_none_may_be_dropped(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"text": " ", "label": "pos", "lang": "en"}])
    assert "row 30 of train: empty text" in mistake(file, clean={"drop_empty": False})


def test_labels_that_are_not_listed_are_named_with_their_row(rows_file):
    said = mistake(rows_file, labels=["negs", "pos"])
    assert "row 0: not one of data.labels" in said
    assert "found: neg" in said
    assert "did you mean `negs`?" in said


@pytest.mark.parametrize("role", ["text", "label"])
def test_bytes_of_a_parquet_file_that_are_no_text_are_named_by_row(tmp_path, role):
    values = pa.array([b"fine"] * 1005 + [b"caf\xe9"] + [b"fine"] * 20, pa.binary())
    broken = pa.Array.from_buffers(pa.string(), len(values), values.buffers())
    columns = {"text": pa.array(["a"] * len(values)), "label": pa.array(["b"] * len(values))}
    pq.write_table(pa.table({**columns, role: broken}), tmp_path / "rows.parquet")
    assert f"train row 1005: the column '{role}' holds bytes that are not UTF-8" in mistake(tmp_path / "rows.parquet")
