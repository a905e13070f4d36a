"""The program of the data check: its exit codes and what it still reports when a part of it crashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft_dist.check import CRASHED, main
from sft_dist.quality import checks, page
from sft_dist.recipe.schema import Recipe


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_model: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path / "cache"))
    recipe = Recipe.model_validate(
        {
            "name": "demo", "task": "text-classification", "model": {"path": str(tiny_model)}, "tuning": "full",
            "data": {"source": str(reviews), "max_length": 32}, "train": {"lr": 1e-3},
        }
    )  # fmt: skip
    file = tmp_path / "recipe.json"
    file.write_text(recipe.model_dump_json())
    return file


def crash(*arguments: Any) -> Any:
    raise ZeroDivisionError("division by zero")


def findings_of(output: str) -> dict[str, str]:
    return {finding["kind"]: finding["message"] for finding in json.loads(output)["findings"]}


@pytest.mark.slow
def test_a_part_that_crashes_is_a_finding_beside_those_of_the_other_parts(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe_file), "--json"]) == 0
    before = findings_of(capsys.readouterr().out)
    monkeypatch.setattr(checks, "check_texts", crash)
    kept = recipe_file.with_name("report.json")
    assert main([str(recipe_file), "--json", "--keep", str(kept)]) == CRASHED
    output = capsys.readouterr()
    assert findings_of(output.out) == {
        **before,
        "crashed-check": "`crash` crashed: ZeroDivisionError: division by zero",
    }
    assert "Traceback" in output.err
    assert json.loads(kept.read_text())["findings"]
    assert main([str(recipe_file), "--allow", "crashed-check"]) == 0


def test_a_page_that_cannot_be_drawn_does_not_take_the_report_along(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "to_html", crash)
    assert main([str(recipe_file), "--json", "--html", str(recipe_file.with_name("check.html"))]) == CRASHED
    assert "`the page` crashed" in findings_of(capsys.readouterr().out)["crashed-check"]
