"""Which pictures and recordings `predict` opens: those that the user names, and those that lie beside a table."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from sft_dist.predict import _media, read_inputs
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.instruction_tuning import InstructionTuning
from tests.tiny_text import recipe_of


def recipe(**data: bool) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "rows",
            "task": "image-classification",
            "model": {"path": "/nowhere"},
            "data": {"source": "./a.csv", **data},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
    )


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("data", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.png").touch()
    (tmp_path / "secret.png").touch()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data" / "rows.csv"


def test_files_that_the_user_names_are_opened_wherever_they_are(table, tmp_path):
    there = tmp_path / "data" / "data.png"
    for name, path in (("here.png", "here/here.png"), ("../secret.png", "secret.png"), (str(there), "data/data.png")):
        for file in (name, "-"):
            assert _media(name, file, recipe()) == {"path": str(tmp_path / path), "bytes": None}


def test_a_table_names_files_beside_it_or_in_the_working_directory(table, tmp_path):
    for name, path in (("data.png", "data/data.png"), ("here.png", "here/here.png"), ("gone.png", "")):
        assert _media(name, str(table), recipe())["path"] == (str(tmp_path / path) if path else name)
    for name in ("../secret.png", str(tmp_path / "secret.png"), "file:///etc/passwd", "http://127.0.0.1:1/a.png"):
        with pytest.raises(UserError, match=r"rows\.csv: .*cannot be read \("):
            _media(name, str(table), recipe())


def test_urls_are_opened_where_the_recipe_allows_them(table):
    for file in (str(table), "-"):
        assert _media("https://x.org/a.png", file, recipe(allow_urls=True))["path"] == "https://x.org/a.png"
        for name in ("https://x.org/a.png", "reference://x.org/a.json"):
            with pytest.raises(UserError, match="cannot be read"):
                _media(name, file, recipe())


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
        assert [row["text"] for row in read_inputs(str(tmp_path / name), recipe(), ["text"])] == texts


def test_a_table_that_training_refuses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,id\ngood, very,1\nbad,2\n")
    with pytest.raises(UserError, match="line 2: expected 2 fields, found 3"):
        list(read_inputs(str(tmp_path / "a.csv"), recipe(), ["text"]))


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
    inputs = read_inputs(str(tmp_path / "a.jsonl"), task.recipe, ["prompt"], task.question_of)
    questions = [json.loads(task.from_input(row)["asked"]) for row in inputs]
    assert questions[0] == questions[1] == turns
    assert [question[-1]["content"] for question in questions] == ["hi", "hi", "hi\nyou", "5", "", "hi", "hi"]
    assert [turn["role"] for turn in questions[5]] == ["tools", "system", "user"]


def test_rows_of_standard_input_are_read_as_those_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def texts(content: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(content))
        return [row["text"] for row in read_inputs("-", recipe(), ["text"])]

    assert texts('{"text": "a"}\n\n{"text": null}\n{"text": 5}\n') == ["a", "", "5"]
    assert texts('{"body": "a"}\n{"text": "b"}\n') == ['{"body": "a"}', '{"text": "b"}']
    assert texts("") == []
    for second, message in (
        ("b", "standard input:2: not JSON"),
        ("[]", "input:2: expected an object"),
        ("{}", "no column"),
    ):
        with pytest.raises(UserError, match=message):
            texts('{"text": "a"}\n' + second)
