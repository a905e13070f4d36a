"""What the gate found is found again for the same data alone."""

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
def test_an_answer_is_kept_for_the_model_the_template_and_the_data_as_they_are(place: Path, name: str) -> None:
    recipe = load(place / "demo.yaml")
    before = check._kept(recipe)
    assert check._kept(recipe) == before
    os.utime(place / name, ns=(1, 1))
    assert check._kept(recipe) != before


def test_an_answer_is_that_of_the_code_that_gave_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(place / "demo.yaml")
    before = check._kept(recipe)
    monkeypatch.setattr(check, "code_digest", lambda: "another version")
    assert check._kept(recipe) != before


def asked(place: Path, monkeypatch: pytest.MonkeyPatch, findings: list[dict[str, Any]], code: int = 0) -> list[int]:
    """Counts how often the gate's process is started; it finds this, in data with one picture."""
    calls: list[int] = []

    def child(recipe: Any, options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(1)
        kept = check._kept(recipe)
        kept.parent.mkdir(parents=True, exist_ok=True)
        files = check.file_states([str(place / "a.png")])
        kept.write_text(json.dumps({"findings": findings, "warnings": 0, "files": files}))
        return subprocess.CompletedProcess([], code, "")

    monkeypatch.setattr(check, "_child", child)
    return calls


def test_a_picture_that_a_table_names_may_change(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, recipe = asked(place, monkeypatch, []), load(place / "demo.yaml")
    for _ in range(2):
        check._known(recipe)
    assert len(calls) == 1
    (place / "a.png").write_text("another")
    for _ in range(2):
        check._known(recipe)
    assert len(calls) == 2
    (place / "a.png").unlink()
    check._known(recipe)
    assert len(calls) == 3


def test_what_could_not_be_read_is_looked_at_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(place, monkeypatch, [{"kind": "unreadable-image"}], check.ERRORS)
    for _ in range(2):
        check._known(load(place / "demo.yaml"))
    assert len(calls) == 2


def test_a_gate_that_could_not_run_answers_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(place, monkeypatch, [{"kind": "unreadable-image"}], 3)
    assert check._known(load(place / "demo.yaml")) is None
