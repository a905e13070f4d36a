"""`status`: what is printed, and that it ends."""

from __future__ import annotations

import json

import pytest

from launch.status import show_status
from sft_dist.recipe.errors import UserError
from tests.launch.test_run_state import make_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_without_runs_it_says_so(runs, capsys):
    runs.mkdir()
    show_status([], str(runs), None, as_json=False)
    assert capsys.readouterr().out == "no runs yet\n"


def test_json_has_a_state_for_each_run(runs, capsys):
    make_run(runs / "demo" / "0123456789")
    show_status([], str(runs), None, as_json=True)
    assert [state["state"] for state in json.loads(capsys.readouterr().out)] == ["sealed"]


def test_watching_ends_with_an_interrupt(runs, capsys, monkeypatch):
    make_run(runs / "demo" / "0123456789")
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("launch.status.time.sleep", sleep)
    show_status([], str(runs), 5, as_json=False)
    assert pauses == [5, 5, 5]
    assert capsys.readouterr().out.count("sealed") == 3


def test_runs_are_shown_by_their_state(runs, capsys):
    make_run(runs / "demo" / "0123456789")
    show_status([], str(runs), None, as_json=False, selected=["failed", "killed"])
    assert capsys.readouterr().out == "none of 1 runs is failed or killed\n"
    show_status([], str(runs), None, as_json=False, selected=["sealed"])
    assert "demo/0123456789" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean `failed`"):
        show_status([], str(runs), None, as_json=False, selected=["fail"])
