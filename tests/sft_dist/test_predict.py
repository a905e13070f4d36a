"""Which pictures and recordings `predict` opens: those that the user names, and those that lie beside a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_dist.predict import _media
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe


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
