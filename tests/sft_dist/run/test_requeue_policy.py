"""What follows an attempt that has ended, and what the batch script reads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sft_dist.recipe.files import write_json
from sft_dist.run.causes import AttemptEnd, Facts, classify_attempt
from sft_dist.run.folder import AttemptFolder, RunFolder
from sft_dist.run.requeue_policy import MAX_ATTEMPTS_WITHOUT_PROGRESS, EndedAttempt, decide, failing_nodes, history_of
from tests.sft_dist.run.test_causes import PEER, error, heartbeat


# ── what next ───────────────────────────────────────────────────────────────────────────────────────────────────────
def ended(cause: str, progress: bool = False, host: str = "", at_step: int | None = None) -> EndedAttempt:
    return EndedAttempt(AttemptEnd("failed", cause, "", hosts=(host,), at_step=at_step), progress)


@pytest.mark.parametrize("cause", ["user error", "not a number", "disk full", "cancelled", "asked to stop"])
def test_what_would_end_the_same_way_or_was_requested_is_not_requeued(cause):
    assert decide([ended(cause, progress=True)]).action == "stop"


def test_a_deterministic_crash_is_tried_twice():
    assert decide([ended("error", at_step=3)]).action == "requeue"
    assert decide([ended("error", at_step=3), ended("error", at_step=3)]).action == "stop"


def test_a_crash_at_the_same_step_stops_although_the_first_attempt_had_saved_something():
    first = ended("error", progress=True, at_step=7)
    assert decide([first]).action == "requeue"
    assert decide([first, ended("error", at_step=7)]).action == "stop"
    assert decide([first, ended("error", progress=True, at_step=19)]).action == "requeue"


def test_two_failures_before_anything_was_saved_are_enough_even_if_they_differ():
    assert decide([ended("killed", at_step=2), ended("error", at_step=3)]).action == "stop"


@pytest.mark.parametrize("cause", ["node lost", "preempted", "time limit", "hang", "network", "gpu", "requeued"])
def test_infrastructure_is_worth_another_start_but_not_forever(cause):
    assert decide([ended(cause)] * (MAX_ATTEMPTS_WITHOUT_PROGRESS - 1)).action == "requeue"
    assert decide([ended(cause)] * MAX_ATTEMPTS_WITHOUT_PROGRESS).action == "stop"
    assert decide([ended(cause, progress=True)] * 50).action == "requeue"


def test_a_node_that_was_to_blame_twice_is_excluded():
    history = [ended("node lost", host="node3"), ended("hang", host="node4"), ended("hang", host="node3")]
    assert decide(history).exclude == ("node3",)
    assert decide(history[:2]).exclude == ()


def test_a_node_is_not_blamed_for_the_programs_errors():
    assert failing_nodes([AttemptEnd("failed", "error", "", hosts=("node1",))] * 3) == ()


# ── history from files ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "attempts").mkdir()
    return RunFolder(tmp_path)


def attempt(run: RunFolder, first_step: int, job: str = "", **errors: Any) -> AttemptFolder:
    made = run.new_attempt()
    write_json(made.start_file, {"first_step": first_step, "job_id": job})
    if errors:
        write_json(made.error_file(0), error(0, **errors))
    return made


def save(run: RunFolder, step: int) -> None:
    run.checkpoint(step).mkdir(parents=True)
    (run.checkpoint(step) / "manifest.json").touch()


def test_progress_is_a_later_first_step_or_a_checkpoint(run: RunFolder):
    attempt(run, 0, message="boom")
    attempt(run, 5, message="boom")
    last = attempt(run, 5, message="boom")
    save(run, 5)
    facts = Facts(number=3, start={"first_step": 5})
    assert [attempt.progress for attempt in history_of(run, last.number, facts)] == [True, False, False]
    save(run, 9)
    assert [attempt.progress for attempt in history_of(run, last.number, facts)] == [True, False, True]


def test_attempts_of_an_earlier_job_do_not_count_against_this_one(run: RunFolder):
    attempt(run, 0, "7", message="boom")
    attempt(run, 0, "7", message="boom")
    attempt(run, 0, "8", message="boom")
    assert len(history_of(run, 3, Facts(number=3, start={"first_step": 0, "job_id": "8"}))) == 1
    assert len(history_of(run, 2, Facts(number=2, start={"first_step": 0, "job_id": "7"}))) == 2


def test_an_attempt_without_a_decision_whose_job_continues_was_requeued_by_slurm(run: RunFolder):
    first = attempt(run, 0, "7")
    attempt(run, 0, "7")
    assert classify_attempt(run, first).cause == "requeued"
    write_json(first.decision_file, {"batch_signal": "TERM", "action": "stop", "job_id": "7"})
    assert classify_attempt(run, first).cause == "requeued"
    write_json(first.decision_file, {"slurm_state": "NODE_FAIL", "job_id": "7"})
    assert classify_attempt(run, first).cause == "node lost"


def call(run: RunFolder, number: int, *options: str) -> tuple[dict[str, str], str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sft_dist.run.requeue_policy", str(run.path), str(number), *options],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "pydantic", "yaml", "numpy"}
    messages = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time"))
    return dict(line.split("=", 1) for line in done.stdout.splitlines()), messages


def test_the_batch_script_gets_lines_that_it_can_read(run: RunFolder):
    attempt(run, 0, message="boom")
    answer, messages = call(run, 1, "--exit-code", "143")
    assert answer == {"action": "requeue", "exclude": "", "exit": "1", "state": "failed"}
    assert "rank 0 on node1: RuntimeError: boom; see attempts/001/rank-0.log" in messages
    attempt(run, 0, message="boom")
    answer, messages = call(run, 2, "--exit-code", "143")
    assert answer["action"] == "stop"
    assert "failed twice in the same way at step 7" in messages


def test_a_job_that_fails_before_its_ranks_record_where_they_start_is_not_requeued_forever(run: RunFolder, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no squeue to ask
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    answers = []
    for number in (1, 2):
        write_json(run.new_attempt().error_file(0), error(0, "no module named x", "ImportError"))
        answers.append(call(run, number, "--exit-code", "143")[0]["action"])
    assert answers == ["requeue", "stop"]


def test_a_finished_run_ends_with_0_whatever_srun_says(run: RunFolder):
    made = attempt(run, 0)
    write_json(made.outcome_file, {"state": "finished", "reason": "all steps done"})
    assert call(run, 1, "--exit-code", "143")[0] == {"action": "stop", "exclude": "", "exit": "0", "state": "finished"}


def test_a_users_mistake_ends_with_2(run: RunFolder):
    attempt(run, 0, message="no such file", user_error=True)
    assert call(run, 1)[0]["exit"] == "2"


def test_hosts_that_could_be_shell_never_reach_the_batch_script(run: RunFolder):
    for _ in range(2):
        made = attempt(run, 0)
        write_json(
            made.hang_file, {"kind": "node", "rank": 1, "host": "$(x)", "hosts": ["$(x)", "node2"], "line": "lost"}
        )
    assert call(run, 2)[0]["exclude"] == "node2"


def test_cancelled_jobs_do_not_requeue_themselves_and_later_ones_do(run: RunFolder, monkeypatch):
    made = attempt(run, 0)
    write_json(made.outcome_file, {"state": "stopped", "reason": "asked to stop"})
    run.cancel_file.write_text("7_1\n8\n")
    monkeypatch.setenv("PATH", "")  # no squeue to ask
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert call(run, 1, "--batch-signal", "USR1")[0]["action"] == "stop"
    made.decision_file.unlink()
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert call(run, 1, "--batch-signal", "USR1")[0]["action"] == "requeue"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert call(run, 1, "--batch-signal", "USR1")[0]["action"] == "stop"


SaySlurm = Callable[..., None]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SaySlurm:
    """Inside job 8: what scontrol shows of it, and the states that sacct has of its starts."""
    commands = tmp_path / "commands"
    commands.mkdir()
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "8")

    def say(job: str = "", *states: str) -> None:
        for name, text in (("scontrol", job), ("sacct", "\n".join(states))):
            (commands / name).write_text(f"#!/bin/sh\ncat <<'E'\n{text}\nE\n")
            (commands / name).chmod(0o700)

    return say


def test_a_preemption_that_only_the_ranks_are_signalled_is_one(run: RunFolder, slurm: SaySlurm):
    """Slurm's default: in a grace time only the ranks receive SIGTERM, the batch shell nothing."""
    made = attempt(run, 0, "8")
    write_json(made.outcome_file, {"state": "stopped", "reason": "received SIGTERM"})
    start = datetime.fromtimestamp(time.time() - 60).isoformat(timespec="seconds")
    slurm(f"JobId=8 StartTime={start} TimeLimit=01:00:00 PreemptTime={start}")
    answer, messages = call(run, 1)
    assert answer["action"] == "requeue"
    assert "saved and stopped: preempted" in messages
    slurm(f"JobId=8 StartTime={start} TimeLimit=01:00:00 PreemptTime=None")
    assert call(run, 1)[0]["action"] == "stop"


def test_the_accounting_explains_earlier_starts(run: RunFolder, slurm: SaySlurm):
    for number, first_step in enumerate((0, 7, 7)):
        made = run.new_attempt()
        write_json(made.start_file, {"first_step": first_step, "job_id": "8", "restart_count": number})
    slurm("JobId=8", "PREEMPTED", "NODE_FAIL", "RUNNING")
    call(run, 3)
    causes = [classify_attempt(run, attempt).cause for attempt in run.all_attempts()[:2]]
    assert causes == ["preempted", "node lost"]


def test_without_accounting_a_start_that_slurm_ended_was_requeued(run: RunFolder, slurm: SaySlurm):
    attempt(run, 0, "8")
    attempt(run, 7, "8")
    slurm("JobId=8")
    call(run, 2)
    assert classify_attempt(run, run.all_attempts()[0]).cause == "requeued"


@pytest.mark.slow
def test_errors_of_ranks_on_other_nodes_may_come_late(run: RunFolder):
    """Else a mistake in the recipe would be taken for a lost node."""
    made = attempt(run, 0, "8")
    for rank in range(8):
        write_json(made.path / f"rank-{rank}.beat.json", heartbeat(rank))
    for rank in range(4):
        write_json(made.error_file(rank), error(rank, PEER))
    late = threading.Timer(
        1.5, lambda: [write_json(made.error_file(rank), error(rank, "boom")) for rank in range(4, 8)]
    )
    late.start()
    _, messages = call(run, 1, "--exit-code", "1")
    late.join()
    assert "rank 4 on node2: RuntimeError: boom" in messages


@pytest.mark.parametrize(
    ("start_s_ago", "limit", "cause"),
    [
        (60, "1-00:00:00", "preempted"),
        (3500, "01:00:00", "time limit"),
        (60, "00:01:00", "time limit"),
        (60, "UNLIMITED", "preempted"),
    ],
)
def test_a_warning_near_the_time_limit_is_the_time_limits(run: RunFolder, slurm: SaySlurm, start_s_ago, limit, cause):
    made = attempt(run, 0)
    write_json(made.outcome_file, {"state": "stopped", "reason": "asked to stop"})
    start = datetime.fromtimestamp(time.time() - start_s_ago).isoformat(timespec="seconds")
    slurm(f"JobId=8 JobState=RUNNING PreemptTime=None StartTime={start} TimeLimit={limit} Comment=a=b")
    _, messages = call(run, 1, "--batch-signal", "USR1")
    assert f"saved and stopped: {cause}" in messages
