"""Runs one after another: which are skipped, which are resumed, and the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.local.runner import LocalRunner
from launch.plan import Plan
from launch.planning import PlannedRun, plan_runs
from launch.run import diagnosis_line, run_all
from launch.run_state import RunState, state_of
from sft_dist.recipe.files import write_json
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import Workplace
from tests.launch.report.run_files import lines_of, write_run


class RecordingRunner(LocalRunner):
    """Writes how a run ended instead of running it."""

    def __init__(self, *ends: str) -> None:
        super().__init__()
        self.ends = list(ends)
        self.started: list[Path] = []

    def run(self, folder: RunFolder, plan: Plan) -> RunState:
        self.started.append(folder.path)
        end = self.ends.pop(0)
        attempt = folder.new_attempt()
        if end == "failed":
            write_json(attempt.error_file(0), {"rank": 0, "host": "here", "type": "E", "message": "m", "time": 1.0})
        elif end == "interrupted":
            self.interrupted = True
            write_json(attempt.outcome_file, {"state": "stopped", "last_step": 3})
        else:
            write_json(attempt.outcome_file, {"state": end, "last_step": 3})
        return state_of(folder.path)


def planned_runs(workplace: Workplace, *overrides: str, fresh: bool = False) -> list[PlannedRun]:
    return plan_runs(str(workplace.recipe), overrides, workplace.path / "runs", fresh=fresh)


def test_fresh_starts_over_beside_the_old_run_which_stays_as_it_was(workplace: Workplace) -> None:
    first = RecordingRunner("finished")
    assert run_all(planned_runs(workplace), first) == 0
    (old,) = first.started
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    second = RecordingRunner("stopped")
    assert run_all(planned_runs(workplace, fresh=True), second) == 1
    assert second.started == [old.with_name(f"{old.name}-2")]
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    third = RecordingRunner("finished")
    assert run_all(planned_runs(workplace), third) == 0
    assert third.started == second.started, "without --fresh the newest one is resumed"


def test_a_failure_does_not_stop_the_rest_and_a_table_shows_all(
    workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    with workplace.recipe.open("a") as file:
        file.write("matrix: {train.seed: [1, 2, 3]}\n")
    backend = RecordingRunner("finished", "failed", "finished")
    assert run_all(planned_runs(workplace), backend) == 1
    assert len(backend.started) == 3
    shown = capsys.readouterr().err
    assert "rank 0 on here: E: m" in shown
    again = RecordingRunner("finished")
    assert run_all(planned_runs(workplace), again) == 0
    assert again.started == [backend.started[1]]


def test_an_interruption_ends_the_series(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    with workplace.recipe.open("a") as file:
        file.write("matrix: {train.seed: [1, 2, 3]}\n")
    backend = RecordingRunner("finished", "interrupted")
    assert run_all(planned_runs(workplace), backend) == 130
    assert "1 not started" in capsys.readouterr().err


def test_planning_writes_nothing(workplace: Workplace) -> None:
    before = sorted(workplace.path.rglob("*"))
    planned_runs(workplace)
    assert sorted(workplace.path.rglob("*")) == before


def test_the_last_line_names_what_went_wrong(tmp_path):
    lines = lines_of(range(1, 81), total=80, validate_every=10)
    healthy = write_run(tmp_path, lines)
    assert diagnosis_line(healthy, state_of(healthy.path)) == ""
    for line in lines:
        if line["kind"] == "validation":
            line["loss"] = 0.5 + abs(line["step"] - 30) / 20
    over_fitted = write_run(tmp_path, lines, train={"seed": 2})
    line = diagnosis_line(over_fitted, state_of(over_fitted.path))
    assert line.startswith("  the model over-fits (over-fit, confidence 90%): sft-dist diagnose ")
