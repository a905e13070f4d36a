"""What a job does by itself between its attempts on a real Slurm, and how it is followed. The trainer is a stub, without torch."""

# ruff: noqa: F811 (a fixture that another module has)

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.slurm.records import jobs_of
from sft_dist.run.folder import RunFolder
from tests.slurm.conftest import devcluster
from tests.slurm.test_submit_real import TRAINER, Workplace, outcome, workplace  # noqa: F401

pytestmark = pytest.mark.slurm

# Ahead of the stub: on one host a GPU is broken, and the rank there ends as the real trainer would.
BROKEN_NODE = """\
import json, os, socket, sys, time
if socket.gethostname() == "BAD":
    folder = os.path.join(sys.argv[1], "attempts", f"{int(os.environ['SFT_DIST_ATTEMPT']):03d}")
    error = {"rank": 0, "host": socket.gethostname(), "time": time.time(), "step": None, "traceback": "",
             "type": "AcceleratorError", "message": "CUDA error: uncorrectable ECC error encountered"}
    with open(os.path.join(folder, "rank-0.error.json"), "w") as file:
        json.dump(error, file)
    sys.exit(1)
"""


def job_of(run: RunFolder) -> int:
    return int(jobs_of(run.path)[0].job)


def logs(run: RunFolder) -> list[str]:
    return [attempt.launcher_log.read_text() for attempt in run.all_attempts()]


def exit_code(workplace: Workplace, job: int) -> str:
    return workplace.cluster.run("sacct", "-nXPj", str(job), "-o", "ExitCode").strip()


@contextmanager
def following(workplace: Workplace, *words: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`sft-dist WORDS` in the background, and the file it prints to."""
    out = workplace.path / "out.txt"
    env = {**workplace.cluster.environment, **workplace.env, "PYTHONUNBUFFERED": "1"}
    with out.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch", *words], cwd=workplace.path, env=env, stdout=file, stderr=file, text=True
        )
        try:
            yield process, out
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(("user_error", "attempts", "code"), [(False, 2, "1:0"), (True, 1, "2:0")])
def test_a_crash_that_would_happen_again_ends_the_job_with_the_verdicts_code(
    workplace: Workplace,
    user_error: bool,
    attempts: int,
    code: str,
) -> None:
    """Two ranks on two nodes, so that srun itself says 143 or 1."""
    workplace.env["STUB"] = json.dumps({"step_s": 0.1, "fail_rank": 1, "fail_step": 3, "fail_user": user_error})
    (run,) = workplace.submit("resources.nodes=2", "resources.processes_per_node=1")
    assert workplace.cluster.wait_for_job(job_of(run), 120)[-1] == "FAILED"
    assert len(run.all_attempts()) == attempts
    assert exit_code(workplace, job_of(run)) == code
    assert user_error or "stop: failed twice in the same way at step 3" in logs(run)[-1]
    assert "no room" in workplace.sft_dist("status")


def test_a_crash_before_any_rank_has_started_is_not_tried_for_ever(workplace: Workplace) -> None:
    workplace.trainer.write_text("import os\nos.abort()\n")
    (run,) = workplace.submit()
    assert workplace.cluster.wait_for_job(job_of(run), 120)[-1] == "FAILED"
    assert len(run.all_attempts()) == 2
    assert "stop: 2 attempts in a row failed before anything was saved" in logs(run)[-1]


def test_a_module_that_the_environment_lacks_is_not_tried_again(workplace: Workplace) -> None:
    workplace.trainer.write_text("import no_such_module\n")
    (run,) = workplace.submit()
    assert workplace.cluster.wait_for_job(job_of(run), 120)[-1] == "FAILED"
    assert len(run.all_attempts()) == 1
    assert "no_such_module" in logs(run)[-1]


def test_a_node_that_fails_twice_is_left_out_the_third_time(workplace: Workplace) -> None:
    bad = workplace.cluster.nodes[0]
    workplace.trainer.write_text(BROKEN_NODE.replace("BAD", bad) + TRAINER.read_text())
    (run,) = workplace.submit("resources.processes_per_node=1")  # two would write one file
    assert workplace.cluster.wait_for_job(job_of(run), 150)[-1] == "COMPLETED"
    first, second, third = logs(run)
    assert f"start 0, on {bad}\n" in first
    assert f"rank 0 on {bad}: gpu (AcceleratorError: CUDA error: uncorrectable ECC" in first
    assert f"start 1, on {bad}\n" in second
    assert f"requeue, without {bad}" in second
    assert f"on {bad}\n" not in third
    assert outcome(run) == "finished"


def test_logs_are_followed_from_one_attempt_to_the_next_until_the_run_has_finished(
    workplace: Workplace,
) -> None:
    workplace.env["STUB"] = json.dumps({"steps": 45, "step_s": 0.2})
    (run,) = workplace.submit()
    with following(workplace, "logs", str(run.path), "-f") as (process, out):
        workplace.cluster.wait_until(lambda: "rank 0 of" in out.read_text(), 60, "the first attempt's output")
        workplace.cluster.run("scontrol", "requeue", str(job_of(run)))
        workplace.cluster.wait_until(lambda: "=== attempt 2 ===" in out.read_text(), 60, "the second attempt")
        assert process.wait(60) == 0
    shown = out.read_text()
    assert [shown.count(f"start {number}, on ") for number in range(3)] == [1, 1, 0]
    assert "attempt 002 finished" in shown


@pytest.mark.parametrize("words", [("logs", "RUN", "-f"), ("status", "RUN", "--watch", "--every", "5")])
def test_what_follows_a_run_ends_cleanly_at_ctrl_c(workplace: Workplace, words: tuple[str, ...]) -> None:
    workplace.env["STUB"] = json.dumps({"steps": 600, "step_s": 0.1})
    (run,) = workplace.submit()
    workplace.cluster.wait_for_state(job_of(run), "RUNNING")
    sign = "rank 0 of" if words[0] == "logs" else "asked Slurm: 1 squeue"
    with following(workplace, *(word.replace("RUN", str(run.path)) for word in words)) as (process, out):
        times = 1 if words[0] == "logs" else 2
        workplace.cluster.wait_until(lambda: out.read_text().count(sign) >= times, 60, sign)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 0
    assert "Traceback" not in out.read_text()
    assert "Aborted" not in out.read_text()
    assert workplace.cluster.queue_states(job_of(run)) == {str(job_of(run)): "RUNNING"}


def test_status_does_without_accounting(workplace: Workplace) -> None:
    workplace.env["STUB"] = json.dumps({"step_s": 0.1, "fail_rank": 0, "fail_user": True})
    (run,) = workplace.submit()
    workplace.wait_for([run])
    assert "asked Slurm: 1 squeue, 1 sacct" in workplace.sft_dist("status")
    pid = int((workplace.cluster.folder / "run/slurmdbd.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    try:
        text = workplace.sft_dist("status")
        assert "failed" in text
        assert "no room" in text
        assert "no accounting (sacct: " in text
        known = workplace.path / "config/sft-dist/clusters/here.yaml"
        known.parent.mkdir(parents=True)
        known.write_text((workplace.path / "here.yaml").read_text() + "accounting: false\n")
        workplace.env["XDG_CONFIG_HOME"] = str(workplace.path / "config")
        text = workplace.sft_dist("status")
        assert text.rstrip().endswith("asked Slurm: 1 squeue")
        assert "no room" in text
    finally:
        devcluster(workplace.cluster.folder, "up")
