"""Which jobs `cancel` ends, and how."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from launch.slurm.cancel import cancel, plan_cancellation
from launch.slurm.records import record_job
from sft_dist.recipe.errors import UserError
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import Workplace, make_recipe
from tests.launch.slurm.test_queue import Slurm, make_run, record


@pytest.fixture
def sweep(tmp_path) -> Path:
    for task in range(4):
        make_run(tmp_path, f"{task}{'0' * 9}", record("14", task), record("18", kind="eval"))
    return tmp_path


def test_running_jobs_are_asked_to_save_and_waiting_ones_go(sweep):
    slurm = Slurm()
    found = plan_cancellation(["demo/*"], sweep, slurm)
    assert (found.running, found.pending, found.evaluations) == (("14_0", "14_1"), ("14_2", "14_3"), ("18",))
    cancel(found, at_once=False, run=slurm)
    assert slurm.calls[1:] == [
        ["scancel", "14_2", "14_3", "18"],
        ["scancel", "--batch", "--signal=USR1", "14_0", "14_1"],
    ]
    assert RunFolder(sweep / "demo/1000000000").cancel_file.read_text() == "14_1\n"


def test_what_slurm_refuses_does_not_save_the_others(sweep):
    slurm = Slurm()

    def refuses(argv):
        slurm(argv)
        if "--batch" not in argv:
            raise UserError("scancel: error: Invalid job id 14_2")
        return ""

    with pytest.raises(UserError, match="Invalid job id"):
        cancel(plan_cancellation(["demo/*"], sweep, slurm), at_once=False, run=refuses)
    assert [argv[:2] for argv in slurm.calls[1:]] == [["scancel", "14_2"], ["scancel", "--batch"]]


def test_at_once_means_all_of_them(sweep):
    slurm = Slurm()
    cancel(plan_cancellation(["demo/*"], sweep, slurm), at_once=True, run=slurm)
    assert slurm.calls[1:] == [["scancel", "14_2", "14_3", "18", "14_0", "14_1"]]


def test_an_evaluation_that_other_runs_wait_for_is_left_alone(sweep):
    found = plan_cancellation(["2*"], sweep, Slurm())
    assert (found.pending, found.evaluations, len(found.folders)) == (("14_2",), (), 1)


def test_scoring_tasks_are_cancelled_with_their_runs(tmp_path):
    for task in range(3):
        make_run(tmp_path, f"{task}" * 10, record("14", task), record("20", task, "score"), record("21", kind="eval"))
    waits = "|PENDING|Dependency||1:00|afterany"
    rows = ["20_0|RUNNING|None|node1|1:00|(null)|", f"20_1{waits}:14_*|", f"20_2{waits}:14_*|", f"21{waits}:20_*|"]
    slurm = Slurm("\n".join(rows))
    assert plan_cancellation(["demo/1*"], tmp_path, slurm).evaluations == ("20_1",)
    assert plan_cancellation(["demo/*"], tmp_path, slurm).evaluations == ("20_0", "20_1", "20_2", "21")


def test_a_pattern_that_fits_nothing_is_a_mistake(sweep):
    with pytest.raises(UserError, match=r"no run matches 'x\*'; 4 runs"):
        plan_cancellation(["x*"], sweep, Slurm())


def stub(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f'#!/bin/sh\necho $0 "$@" >> {folder}/calls\n{text}\n')
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.mark.slow
def test_the_command_line_asks_before_it_cancels_and_counts_its_calls(workplace: Workplace):
    (folder,) = workplace.run_folders()
    folder.path.mkdir(exist_ok=True)
    folder.create(make_recipe())
    record_job(folder, record("14", 0))
    bin = workplace.path / "bin"
    bin.mkdir()
    stub(bin, "squeue", "echo '14_0|RUNNING|None|node1|29:56|(null)|'")
    stub(bin, "scancel", "")
    workplace.env["PATH"] = f"{bin}{os.pathsep}{workplace.env['PATH']}"
    shown = workplace.run("status")
    assert "running" in shown.stdout
    assert "asked Slurm: 1 squeue" in shown.stdout
    assert json.loads(workplace.run("status", "--json").stdout)[0]["job"] == "14_0"
    refused = workplace.run("cancel", "demo/*")
    assert refused.returncode == 1
    assert "scancel" not in (bin / "calls").read_text()
    assert workplace.run("cancel", "demo/*", "--yes").returncode == 0
    assert "scancel --batch --signal=USR1 14_0" in (bin / "calls").read_text()
