"""Every line and row that `predict` is given is one input, read as for training."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sft_dist.evaluation.inputs import Input, InputReader
from sft_dist.recipe.errors import UserError
from sft_dist.tasks import task_of
from sft_dist.tasks.base import Task
from sft_dist.tasks.instruction_tuning import InstructionTuning
from tests.tiny_text import recipe_of

TEXTS = task_of(recipe_of("text-classification"))


def inputs(file: object, task: Task = TEXTS, **options: str) -> list[Input]:
    return [entry for entry in InputReader(task, **options).read(str(file)) if entry is not None]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads a content as standard input: texts, with the fault in the place of an unreadable one."""

    def read(content: str | bytes, task: Task = TEXTS, **options: str) -> list[str]:
        data = content if isinstance(content, bytes) else content.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        return [entry.fault or entry.row[task.input_roles[0]] for entry in inputs("-", task, **options)]

    return read


def test_tables_are_read_as_for_training(tmp_path: Path) -> None:
    """A text that begins with a quotation mark, long fields, other delimiters, texts that look like numbers."""
    long = "word " * 40_000
    tables = {
        "a.tsv": ('text\tid\n"quoted start\t1\nnext\t2\n', ['"quoted start', "next"]),
        "b.csv": (f"text,id\n{long},1\n0013,2\n,3\n", [long, "0013", ""]),
        "c.csv": ("text;id\ngood, very;1\n", ["good, very"]),
        "d.jsonl": ('{"text": "2001-01-01"}\n{"text": null}\n', ["2001-01-01", ""]),
    }
    for name, (content, texts) in tables.items():
        (tmp_path / name).write_text(content)
        assert [entry.row["text"] for entry in inputs(tmp_path / name)] == texts


def test_a_table_that_training_refuses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,id\ngood, very,1\nbad,2\n")
    with pytest.raises(UserError, match="line 2: expected 2 fields, found 3"):
        inputs(tmp_path / "a.csv")


def test_conversations_are_read_as_for_training(tmp_path: Path) -> None:
    """Up to the question: the answers at the end are what the model is to write."""
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}]
    answer, tool = {"role": "assistant", "content": "bye"}, {"name": "f", "parameters": {}}
    rows = [
        {"messages": turns},
        {"messages": [*turns, answer], "prompt": "not this"},
        {"instruction": "hi", "input": "you", "output": "bye"},
        {"prompt": 5},
        {"prompt": None},
        {"messages": [*turns, answer], "tools": [tool]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "bye"}]},
    ]
    task = InstructionTuning(recipe_of("instruction-tuning"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [entry.row for entry in inputs(tmp_path / "a.jsonl", task)]
    questions = [json.loads(task.from_input(row)["asked"]) for row in asked]
    assert questions[0] == questions[1] == turns
    assert [question[-1]["content"] for question in questions] == ["hi", "hi", "hi\nyou", "5", "", "hi", "hi"]
    assert [turn["role"] for turn in questions[5]] == ["tools", "system", "user"]


def test_rows_of_standard_input_are_read_as_those_of_a_file(stdin: Any) -> None:
    assert stdin('{"text": "a"}\n\n{"text": null}\n{"text": 5}\n') == ["a", "", "5"]
    assert stdin('{"body": "a"}\n{"text": "b"}\n') == ['{"body": "a"}', '{"text": "b"}']
    assert stdin("") == []
    for second, message in (
        ("b", "standard input:2: not JSON"),
        ("[]", "standard input:2: expected an object"),
        ("{}", "standard input:2: no column 'text'"),
    ):
        first, fault, last = stdin('{"text": "a"}\n' + second + '\n{"text": "c"}')
        assert (first, last) == ("a", "c")
        assert fault.startswith(message)


def test_a_table_on_standard_input_is_recognised_by_its_header_and_said_so(stdin: Any, capsys: Any) -> None:
    assert stdin('text,id\n"good, very",1\nbad,2\n') == ["good, very", "bad"]
    assert capsys.readouterr().err == "standard input: read as csv; --format txt takes its lines for texts\n"
    assert stdin("id\ttext\n1\tgood\n") == ["good"]
    assert stdin("\ufefftext;id\r\ngood, very;1\r\n") == ["good, very"]
    assert stdin("text\ngood\n") == ["good"]
    assert stdin("text\ngood\n", format="txt") == ["text", "good"]
    capsys.readouterr()
    assert stdin("a text, and more\nb\n") == ["a text, and more", "b"]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="^standard input, line 2: expected 2 fields, found 3"):
        stdin("text,id\ngood, very,1\n")


@pytest.mark.parametrize("line", ["long " * 40_000, "one\rtwo"])
def test_a_first_line_that_no_table_has_is_a_text(stdin: Any, line: str) -> None:
    assert stdin(f"{line}\nnext\n") == [line, "next"]


def test_the_format_of_standard_input_may_be_named(stdin: Any, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["007", "b"]})
    frame.to_parquet(tmp_path / "a.parquet")
    assert stdin((tmp_path / "a.parquet").read_bytes(), format="parquet") == ["007", "b"]
    assert stdin('[{"text": "a"},\n {"text": "b"}]', format="json") == ["a", "b"]
    (fault,) = stdin("body\na\n", format="csv")
    assert "standard input: row 1: no column 'text'" in fault


def test_files_of_every_table_format_are_read(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,n\na,1\nb,2\n"))
    for name in ("a.parquet", "a.json", "a.csv.gz"):
        entries = inputs(tmp_path / name, id_column="n")
        assert [(entry.row["text"], str(entry.columns["n"])) for entry in entries] == [("a", "1"), ("b", "2")]


def test_a_column_is_taken_along_as_the_table_has_it(tmp_path: Path, stdin: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 7, "text": "a"}\n{"text": "b"}\n')
    first, second = inputs(tmp_path / "a.jsonl", id_column="id")
    assert first.columns == {"id": 7}
    assert "no column 'id'" in second.fault
    with pytest.raises(UserError, match="only rows of tables have columns"):
        stdin("a\n", id_column="id")


def test_lines_that_cannot_be_read_are_inputs_with_a_fault(stdin: Any, tmp_path: Path) -> None:
    first, fault, last = stdin(b"a\n\xff\nc")
    assert (first, last) == ("a", "c")
    assert fault == "standard input:2: not UTF-8 (invalid start byte at byte 0)"
    pairs = task_of(recipe_of("text-classification", columns={"text_pair": "second"}))
    (tmp_path / "a.txt").write_text("a\tb\na\n")
    good, bad = inputs(tmp_path / "a.txt", pairs)
    assert good.row == {"text": "a", "text_pair": "b"}
    assert bad.fault.endswith("a.txt:2: 2 texts separated by a tab are needed (text, text_pair)")


def test_standard_input_is_answered_before_more_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.BytesIO):
        """Gives a line at a time, as a program that waits for each answer."""

        def read1(self, size: int | None = -1) -> bytes:
            return self.readline()

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Slow(b"a\nb\n")))
    entries = list(InputReader(TEXTS).read("-"))
    assert [entry and entry.row["text"] for entry in entries] == ["a", None, "b", None]
