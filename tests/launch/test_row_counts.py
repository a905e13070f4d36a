"""Counting examples: once, in a process of its own."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from launch.row_counts import count_rows
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.load import load
from tests.launch.conftest import RECIPE


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "demo.yaml").write_text(RECIPE)
    return tmp_path / "demo.yaml"


def counter(folder: Path, body: str) -> str:
    """A stand-in for python that answers as `sft_dist.count` would, and notes that it was asked."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\necho asked >> {folder}/asked\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_rows_are_counted_once_and_again_when_the_data_changed(recipe_file: Path) -> None:
    recipe = load(recipe_file)
    python = counter(
        recipe_file.parent,
        """echo 'noise'; echo '{"splits": {"train": 7}, "dropped": {"empty": 1}, "labels": [0, 1]}'""",
    )
    for _ in range(2):
        rows = count_rows(recipe, python)
        assert (rows.train, rows.dropped, rows.labels) == (7, {"empty": 1}, ("0", "1"))
    asked = recipe_file.parent / "asked"
    assert asked.read_text() == "asked\n"
    (recipe_file.parent / "rows.csv").write_text("text,label\na,0\nb,1\nc,1\n")
    count_rows(recipe, python)
    assert asked.read_text() == "asked\nasked\n"


def test_a_mistake_in_the_data_is_the_users(recipe_file: Path) -> None:
    with pytest.raises(UserError, match="no column `text`"):
        count_rows(load(recipe_file), counter(recipe_file.parent, "echo 'rows.csv: no column `text`' >&2; exit 2"))


def test_a_mistake_in_the_data_keeps_its_key_path(recipe_file: Path) -> None:
    answer = UserError(Problem("no column 'txt'", "data.columns.text", value="txt", valid=("text", "label"))).to_dict()
    with pytest.raises(UserError) as refusal:
        count_rows(load(recipe_file), counter(recipe_file.parent, f"echo {shlex.quote(json.dumps(answer))}; exit 2"))
    (problem,) = refusal.value.problems
    assert (problem.path, problem.value, problem.valid) == ("data.columns.text", "txt", ("text", "label"))


@pytest.mark.parametrize("body", ["echo 'ConnectionError: offline' >&2; exit 1", "echo nonsense"])
def test_any_other_failure_leaves_the_count_unknown_and_is_not_remembered(recipe_file: Path, body: str) -> None:
    recipe = load(recipe_file)
    rows = count_rows(recipe, counter(recipe_file.parent, body))
    assert rows.train is None
    assert rows.unknown
    good = counter(recipe_file.parent, """echo '{"splits": {"train": 7}}'""")
    assert count_rows(recipe, good).train == 7


def test_a_cache_that_cannot_be_written_only_costs_time(recipe_file: Path) -> None:
    (recipe_file.parent / "cache").write_text("a file where the folder should be")
    python = counter(recipe_file.parent, """echo '{"splits": {"train": 7}}'""")
    assert count_rows(load(recipe_file), python).train == 7
    assert sys.executable != python
