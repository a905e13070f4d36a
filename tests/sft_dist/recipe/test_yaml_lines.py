"""YAML is read with its places, by the YAML 1.2 rules, and no file can do harm."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from sft_dist.recipe.errors import Mark, UserError
from sft_dist.recipe.yaml_lines import MOST_BYTES, parse_yaml, read_yaml
from sft_dist.recipe.yaml_values import parse_scalar


def failure(text: str | bytes, tmp_path: Path) -> UserError:
    file = tmp_path / "r.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError) as caught:
        read_yaml(file, "r.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("0x1F", 31),
        ("0", 0),
        ("1.", 1.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("6%", "6%"),
        ("-", "-"),
        (".", "."),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_unquoted_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number_for_the_schema_to_refuse() -> None:
    assert math.isnan(parse_scalar(".nan"))


def test_every_key_and_value_has_its_place() -> None:
    document = parse_yaml("train:\n  lr: 1e-4\ndata: {labels: [a, 'b']}\n", "r.yaml")
    assert document.data == {"train": {"lr": 1e-4}, "data": {"labels": ["a", "b"]}}
    assert document.keys[("train", "lr")] == Mark("r.yaml", 2, 3)
    assert document.values[("train", "lr")] == Mark("r.yaml", 2, 7)
    assert document.values[("train",)] == Mark("r.yaml", 1, 1)
    assert document.values[("data", "labels", 1)] == Mark("r.yaml", 3, 20)
    assert document.texts[("train", "lr")] == "1e-4"


def test_columns_count_characters_not_bytes() -> None:
    assert parse_yaml("näme: {ü: x}", "r").values[("näme", "ü")] == Mark("r", 1, 11)


def test_quoted_scalars_stay_text() -> None:
    assert parse_yaml("a: '1'\nb: \"true\"\nc: |\n  5\n", "r").data == {"a": "1", "b": "true", "c": "5\n"}


def test_anchors_and_aliases_work() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\n", "r").data == {"a": [1, 2], "b": [1, 2]}


def test_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = read_yaml(file)
    assert document.data == {"a": 1, "b": 2}
    assert (document.keys[("b",)].line, document.keys[("b",)].column) == (2, 1)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (b"a: 1\nb: t\xe9\n", "r.yaml:2:5", ["not UTF-8", "0xe9", "offset 9"]),
        ("a: 1\n".encode("utf-16"), "r.yaml:1:1", ["UTF-16"]),
        ("train:\n\tlr: 1\n", "r.yaml:2:1", ["tab"]),
        ("train:\n  lr: 1\n\tsteps: 2\n", "r.yaml:3:1", ["tab"]),
        ("a: b\0c\n", "r.yaml:1:5", ["NUL"]),
        ("a: b\x1bc\n", "r.yaml:1:5", ["U+001B"]),
        ('a: "b\\0c"\n', "r.yaml:1:4", ["NUL"]),
        ('a: "\\ud800"\n', "r.yaml:1:7", ["escape"]),
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3:1", ["a: the same key twice", "r.yaml:1:1"]),
        ("[" * 100_000, "r.yaml:1:51", ["nested more than 50"]),
        ("- " * 60 + "a", "r.yaml:1:101", ["nested more than 50"]),
        ("a: &a [*a]\n", "r.yaml:1:8", ["refers to the value it stands in"]),
        ("a: *nowhere\n", "r.yaml:1:4", ["no anchor `&nowhere`"]),
        ("a: *.csv\n", "r.yaml:1:5", ["put the text in quotes"]),
        ("a: !!python/object/apply:os.system [ls]\n", "r.yaml:1:4", ["tags", "!!python/object/apply:os.system"]),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1", ["second document"]),
        ("", "r.yaml:1:1", ["empty", "sft-dist init"]),
        ("# nothing\n", "r.yaml:1:1", ["empty"]),
        ("- a\n", "r.yaml:1:1", ["a list, not a mapping"]),
        ("hello\n", "r.yaml:1:1", ["a single value"]),
        ("1: a\n", "r.yaml:1:1", ["a key must be text, found 1", '"1"']),
        ("[a]: b\n", "r.yaml:1:1", ["a key must be text, found a list"]),
        ("? {a: b}\n: c\n", "r.yaml:1:3", ["a key must be text, found a mapping"]),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "r.yaml:3:3", ["merge keys", "base:"]),
        ("a: [b, c\nd: e\n", "r.yaml:1:4", ["`[` is not closed"]),
        ("a: {b: c\n", "r.yaml:1:4", ["`{` is not closed"]),
        ("a: [\n", "r.yaml:1:4", ["`[` is not closed"]),
        ("a: [b, {c: d,\n\n", "r.yaml:1:8", ["`{` is not closed"]),
        ("a: [}\n", "r.yaml:1:5", ["a value is missing here"]),
        ('a: "b\nc: d\n', "r.yaml:1:4", ["a quote is not closed"]),
        ("a: b: c\n", "r.yaml:1:5", ["`: ` is not possible here"]),
        ("a: 1\nb\n", "r.yaml:2:1", ["a `:` is missing"]),
        ("a: @b\n", "r.yaml:1:4", ["cannot begin with `@`"]),
        ('a: "\\q"\n', "r.yaml:1:5", ["escape"]),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str | bytes, place: str, words: list[str], tmp_path: Path) -> None:
    said = failure(text, tmp_path).render()
    assert said.startswith(f"{place}: ")
    for word in words:
        assert word in said


def test_all_duplicates_tags_and_bad_keys_are_reported_at_once(tmp_path: Path) -> None:
    error = failure("a: 1\na: 2\nb: !x 3\n5: c\nd: {e: 1, e: 2}\nf: [\n", tmp_path)
    assert [problem.mark.line for problem in error.problems if problem.mark] == [2, 3, 4, 5, 6]
    assert error.problems[3].path == "d.e"


def test_a_bomb_of_aliases_is_refused_quickly(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{n}: &{n} [{', '.join([f'*{p}'] * 10)}]" for p, n in zip("abcdefgh", "bcdefghi", strict=True)]
    started = time.process_time()
    assert "more than 100,000 values" in failure("\n".join(lines), tmp_path).render()
    assert time.process_time() - started < 2


def test_a_ten_megabyte_file_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    said = failure(b"a: " + b"x" * 10_000_000, tmp_path).render()
    assert "9.5 MiB" in said
    assert "at most 1 MiB" in said


def test_a_file_of_just_one_mebibyte_is_read(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"a: " + b"x" * (MOST_BYTES - 3))
    assert len(read_yaml(file).data["a"]) == MOST_BYTES - 3


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(UserError, match=r"no such file\n.*did you mean `quickstart.yaml`"):
        read_yaml(tmp_path / "quikstart.yaml")


def test_a_folder_lists_the_recipes_in_it(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").touch()
    with pytest.raises(UserError, match=r"is a folder; a recipe is a file\n    valid: b.yaml"):
        read_yaml(tmp_path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        read_yaml(tmp_path / "pipe")
