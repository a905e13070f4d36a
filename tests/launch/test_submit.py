"""`submit` to this machine, and what is asked before anything is sent."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from launch.submit import submit_recipe

OPTIONS = {"fresh": False, "evaluate": True, "check": True}


def test_a_cluster_must_be_named(workplace, monkeypatch):
    monkeypatch.chdir(workplace.path)
    with pytest.raises(click.UsageError, match="--cluster NAME is missing; valid: local, "):
        submit_recipe("demo.yaml", [], Path("runs"), None, 2, None, [], dry_run=True, **OPTIONS)


def test_a_dry_run_here_shows_the_plans_and_writes_nothing(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace.path)
    assert submit_recipe("demo.yaml", [], Path("runs"), "local", 2, None, [], dry_run=True, **OPTIONS) == 0
    assert "runs/demo/" in capsys.readouterr().out
    assert not (workplace.path / "runs").exists()


def test_warnings_of_the_data_check_are_printed_before_the_runs_start(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace.path)
    monkeypatch.setattr("launch.check.check_before_submit", lambda runs, allow: [f"{len(runs)} run, {allow}"])
    monkeypatch.setattr("launch.run.run_all", lambda runs, runner: 3)
    code = submit_recipe("demo.yaml", [], Path("runs"), "local", 2, None, ["leak"], dry_run=False, **OPTIONS)
    assert code == 3
    assert capsys.readouterr().err == "warning: 1 run, ['leak']\n"
