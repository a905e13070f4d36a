"""`plan`, in one process: text, JSON, and which options go together."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from launch.show_plan import show_plan
from tests.launch.conftest import Workplace


def shown(workplace: Workplace, monkeypatch: pytest.MonkeyPatch, **options: bool) -> str:
    monkeypatch.chdir(workplace.path)
    chosen = {"script_only": False, "diff": False, "as_json": False, **options}
    return show_plan("demo.yaml", ["train.seed=1"], Path("runs"), 2, None, **chosen)


def test_json_lists_every_plan(workplace, monkeypatch):
    (plan,) = json.loads(shown(workplace, monkeypatch, as_json=True))
    assert plan["batch"]["global_batch"] == 32
    assert not (workplace.path / "runs").exists()


def test_text_names_the_run_folder(workplace, monkeypatch):
    assert "runs/demo/" in shown(workplace, monkeypatch)


def test_in_a_diff_runs_without_a_folder_are_missing(workplace, monkeypatch):
    states = json.loads(shown(workplace, monkeypatch, diff=True, as_json=True))
    assert {state: len(folders) for state, folders in states.items() if folders} == {"missing": 1}


def test_a_script_needs_a_cluster(workplace, monkeypatch):
    with pytest.raises(click.UsageError, match="add --cluster NAME"):
        shown(workplace, monkeypatch, script_only=True)
