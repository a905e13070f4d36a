"""The report of the data check is cached, for the same data only."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launch import check
from sft_dist.recipe.load import load

CHAT = """\
task: {type: instruction-tuning, chat_template: ./template.jinja}
model: {path: ./model}
data: {source: ./chats.jsonl}
tuning: full
train: {lr: 1.0e-3}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    for name in ("model/config.json", "model/tokenizer.json", "template.jinja", "chats.jsonl", "a.png"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "demo.yaml").write_text(CHAT)
    return tmp_path


@pytest.mark.parametrize("name", ["model/config.json", "model/tokenizer.json", "template.jinja", "chats.jsonl"])
def test_a_report_is_cached_by_the_state_of_model_template_and_data(place: Path, name: str) -> None:
    recipe = load(place / "demo.yaml")
    before = check._report_file(recipe)
    assert check._report_file(recipe) == before
    os.utime(place / name, ns=(1, 1))
    assert check._report_file(recipe) != before


def test_a_report_is_cached_by_the_version_of_the_code(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(place / "demo.yaml")
    before = check._report_file(recipe)
    monkeypatch.setattr(check, "code_digest", lambda: "another version")
    assert check._report_file(recipe) != before


def count_checks(
    place: Path, monkeypatch: pytest.MonkeyPatch, findings: list[dict[str, Any]], code: int = 0
) -> list[int]:
    """Counts how often the check is started; its report has these findings, and one image."""
    calls: list[int] = []

    def fake_check(recipe: Any, options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(1)
        file = check._report_file(recipe)
        file.parent.mkdir(parents=True, exist_ok=True)
        files = check.file_states([str(place / "a.png")])
        file.write_text(json.dumps({"findings": findings, "warnings": 0, "files": files}))
        return subprocess.CompletedProcess([], code, "")

    monkeypatch.setattr(check, "_check_in_subprocess", fake_check)
    return calls


def test_a_changed_image_of_a_table_is_checked_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, recipe = count_checks(place, monkeypatch, []), load(place / "demo.yaml")
    for _ in range(2):
        check._report_of(recipe)
    assert len(calls) == 1
    (place / "a.png").write_text("another")
    for _ in range(2):
        check._report_of(recipe)
    assert len(calls) == 2
    (place / "a.png").unlink()
    check._report_of(recipe)
    assert len(calls) == 3


def test_unreadable_data_is_checked_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_checks(place, monkeypatch, [{"kind": "unreadable-image"}], check.ERRORS)
    for _ in range(2):
        check._report_of(load(place / "demo.yaml"))
    assert len(calls) == 2


def test_a_check_that_failed_has_no_report(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_checks(place, monkeypatch, [{"kind": "unreadable-image"}], 3)
    assert check._report_of(load(place / "demo.yaml")) is None
