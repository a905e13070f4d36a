"""Trials as processes on this machine, with a trainer of a few lines."""

from __future__ import annotations

import time

import pytest

from launch.planning import PlannedRun, plan_runs
from launch.search.planner import pausing_at
from launch.search.runners import LocalRuns
from sft_dist.recipe.errors import UserError
from sft_dist.run.attempt import LAST_STEP
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import Workplace, put_stubs

pytestmark = pytest.mark.slow


@pytest.fixture
def run(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> PlannedRun:
    for name in ("STUB_WORKPLACE", "STUB"):
        monkeypatch.setenv(name, workplace.env[name])
    (planned,) = plan_runs(str(workplace.recipe), [], workplace.path / "runs")
    return planned


def test_another_controller_sees_what_runs_and_a_stop_is_obeyed(
    workplace: Workplace, run: PlannedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB", '{"steps": 1000, "step_s": 0.1}')
    folder = run.plan.folder
    runs, successor = LocalRuns(workplace.path), LocalRuns(workplace.path)
    assert runs.states([folder]) == {}
    put_stubs_before(run)
    runs.start([pausing_at(run, 7)])
    successor.start([run])
    assert successor.states([folder])[folder].state == "running"
    deadline = time.monotonic() + 120
    while not list(folder.glob("attempts/001/start.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    successor.stop([folder])
    runs.close()
    assert successor.states([folder])[folder].state == "stopped"
    assert len(list(folder.glob("attempts/*"))) == 1


def test_a_training_that_does_not_start_ends_the_search_with_its_message(
    workplace: Workplace, run: PlannedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_stubs_before(run)
    runs = LocalRuns(workplace.path, processes=7)
    runs.start([run])
    runs.close()
    with pytest.raises(UserError, match=r"its training did not start: .*"):
        runs.states([run.plan.folder])


def put_stubs_before(run: PlannedRun) -> None:
    folder = RunFolder(run.plan.folder)
    folder.path.mkdir(parents=True)
    put_stubs(folder)


def test_a_plan_pauses_at_a_step_by_its_environment(run: PlannedRun) -> None:
    paused = pausing_at(run, 7)
    assert paused.plan.env[LAST_STEP] == "7"
    assert pausing_at(paused, None).plan.env == run.plan.env
