"""Why attempts end, who was first, and what follows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sft_dist.recipe.run_folder import AttemptFolder, RunFolder, write_json
from sft_dist.recipe.verdict import (
    MOST_BARREN,
    Ended,
    Facts,
    Verdict,
    agents_of,
    cause_of,
    classify,
    decide,
    failing_nodes,
    history_of,
    verdict_of,
)

PEER = "[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.213.77.12]:5312"

# As torch 2.13 prints it.
AGENT = """\
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_05:12:32
  host      : node2
  rank      : 5 (local_rank: 1)
  exitcode  : -9 (pid: 4711)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 4711
"""


def error(rank: int, message: str, type: str = "RuntimeError", time: float = 10.0, **more: Any) -> dict[str, Any]:
    return {
        "rank": rank,
        "host": f"node{rank // 4 + 1}",
        "time": time,
        "type": type,
        "message": message,
        "step": 7,
        **more,
    }


def beat(rank: int, time: float = 10.0, phase: str = "training") -> dict[str, Any]:
    return {"rank": rank, "host": f"node{rank // 4 + 1}", "step": 7, "phase": phase, "time": time}


# ── causes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("type", "message", "cause"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory"),
        ("RuntimeError", "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", "out of memory"),
        ("MemoryError", "", "out of memory"),
        ("TrainingError", "the loss of step 12 is nan; examples [3, 4] on this rank", "not a number"),
        ("OSError", "[Errno 28] No space left on device: 'model.safetensors'", "disk full"),
        ("OSError", "[Errno 122] Disk quota exceeded", "disk full"),
        ("SafetensorError", "Error while serializing: I/O error: No space left on device (os error 28)", "disk full"),
        ("RuntimeError", PEER, "network"),
        ("DistBackendError", "NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited", "network"),
        ("DistNetworkError", "The client socket has timed out after 60000ms while trying to connect", "network"),
        ("ConnectionResetError", "[Errno 104] Connection reset by peer", "network"),
        ("AcceleratorError", "CUDA error: uncorrectable ECC error encountered", "gpu"),
        ("ArrowInvalid", "JSON parse error: Invalid value. in row 7", "data"),
        ("KeyError", "'text'", "error"),
        ("ValueError", "losses differ", "error"),
    ],
)
def test_an_error_is_named_by_what_it_says(type, message, cause):
    assert cause_of(error(0, message, type)) == cause


def test_an_error_while_examples_are_read_is_the_datas():
    frames = 'File "/runs/x/source/sft_dist/data/sources.py", line 3, in read\nKeyError'
    assert cause_of(error(0, "'text'", "KeyError", traceback=frames)) == "data"
    frames = 'File "/runs/x/source/sft_dist/loop.py", line 3, in run\nKeyError'
    assert cause_of(error(0, "'text'", "KeyError", traceback=frames)) == "error"


# ── who was first ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_lost_connections_are_the_echo_of_what_one_rank_says_even_if_its_clock_is_late():
    facts = Facts(errors=(error(0, PEER, time=10.0), error(5, "CUDA out of memory", "OutOfMemoryError", time=12.0)))
    found = classify(facts)
    assert (found.rank, found.host, found.cause) == (5, "node2", "out of memory")
    assert found.line == (
        "rank 5 on node2: out of memory (OutOfMemoryError: CUDA out of memory); see attempts/001/rank-5.log"
    )


def test_a_rank_killed_by_a_signal_writes_nothing_and_is_named_by_its_agent():
    facts = Facts(
        errors=tuple(error(rank, PEER) for rank in range(8) if rank != 5),
        beats=tuple(beat(rank) for rank in range(8)),
        agents=agents_of(AGENT),
    )
    found = classify(facts)
    assert (found.rank, found.host, found.cause, found.at_step) == (5, "node2", "killed", 7)
    assert found.line.startswith("rank 5 on node2: killed by signal 9")


def test_without_an_agents_word_the_silent_rank_whose_life_ended_first_is_named():
    facts = Facts(
        errors=tuple(error(rank, PEER) for rank in range(6)),  # 6 was ended by its agent, 7 before
        beats=(*(beat(rank, time=20.0) for rank in range(7)), beat(7, time=11.0)),
    )
    assert classify(facts).rank == 7


def test_ranks_ended_by_torchruns_own_sigterm_are_not_named():
    log = AGENT.replace("rank      : 5", "rank      : 2").replace("exitcode  : -9", "exitcode  : -15") + AGENT
    assert [one["rank"] for one in agents_of(log)] == [5]


def test_a_host_whose_ranks_are_all_silent_is_a_lost_node():
    facts = Facts(errors=tuple(error(rank, PEER) for rank in range(4)), beats=tuple(beat(rank) for rank in range(8)))
    found = classify(facts)
    assert (found.cause, found.host, found.hosts) == ("node lost", "node2", ("node2",))


def test_only_lost_connections_and_no_silent_rank_is_the_network():
    facts = Facts(errors=(error(0, PEER, time=11.0), error(4, "NCCL timeout", time=10.0)), beats=(beat(0), beat(4)))
    found = classify(facts)
    assert (found.cause, found.rank, found.host) == ("network", 4, "node2")


def test_ranks_that_lose_each_other_while_slurm_ends_them_do_not_accuse_the_network():
    facts = Facts(errors=(error(0, PEER), error(1, PEER)), beats=(beat(0), beat(1)), started_again=True)
    assert classify(facts).cause == "requeued"


@pytest.mark.parametrize(
    ("told", "state", "cause"),
    [
        ({"slurm_state": "NODE_FAIL"}, "killed", "node lost"),
        ({"slurm_state": "TIMEOUT"}, "killed", "time limit"),
        ({"slurm_state": "PREEMPTED"}, "killed", "preempted"),
        ({"slurm_state": "OUT_OF_MEMORY"}, "killed", "out of memory"),
        ({"slurm_state": "CANCELLED by 0"}, "killed", "cancelled"),
        ({"slurm_state": "CANCELLED+"}, "killed", "cancelled"),
        ({"cancelled": True}, "killed", "cancelled"),
        ({"started_again": True}, "killed", "requeued"),
        ({"exit": {"returncode": -9}}, "killed", "killed"),
        ({"exit": {"returncode": 1}}, "failed", "error"),
        ({}, "killed", "killed"),
        ({"outcome": {"state": "finished"}, "exit": {"returncode": 1}}, "finished", "finished"),
        ({"outcome": {"state": "stopped"}}, "stopped", "asked to stop"),
        ({"outcome": {"state": "stopped"}, "batch_signal": "USR1", "limit_near": True}, "stopped", "time limit"),
        ({"outcome": {"state": "stopped"}, "batch_signal": "USR1"}, "stopped", "preempted"),
        ({"outcome": {"state": "stopped"}, "batch_signal": "USR1", "cancelled": True}, "stopped", "cancelled"),
        ({"outcome": {"state": "stopped"}, "batch_signal": "TERM"}, "stopped", "asked to stop"),
        ({"outcome": {"state": "stopped"}, "batch_signal": "TERM", "started_again": True}, "stopped", "requeued"),
        ({"outcome": {"state": "stopped"}, "slurm_state": "PREEMPTED"}, "stopped", "preempted"),
    ],
)
def test_silence_and_orderly_stops_are_explained_by_what_slurm_says(told, state, cause):
    found = classify(Facts(**told))
    assert (found.state, found.cause) == (state, cause)


def test_a_hang_names_the_rank_the_watcher_named():
    hang = {
        "kind": "silent",
        "rank": 3,
        "host": "node1",
        "hosts": ["node1"],
        "step": 9,
        "line": "rank 3 on node1 stopped",
    }
    found = classify(Facts(hang=hang, errors=(error(0, PEER),)))
    assert (found.cause, found.rank, found.hosts, found.line) == (
        "hang", 3, ("node1",), "rank 3 on node1 stopped; see attempts/001/hang.json",
    )  # fmt: skip


def test_a_hang_without_anybody_to_blame_blames_nobody():
    hang = {"kind": "all", "rank": None, "host": "", "hosts": [], "step": 9, "line": "all 4 ranks: no progress"}
    found = classify(Facts(hang=hang))
    assert (found.cause, found.rank, found.hosts) == ("hang", None, ())


# ── what next ───────────────────────────────────────────────────────────────────────────────────────────────────────
def ended(cause: str, progress: bool = False, host: str = "", at_step: int | None = None) -> Ended:
    return Ended(Verdict("failed", cause, "", hosts=(host,), at_step=at_step), progress)


@pytest.mark.parametrize("cause", ["user error", "not a number", "disk full", "cancelled", "asked to stop"])
def test_what_would_only_happen_again_or_was_wanted_is_not_tried_again(cause):
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
def test_infrastructure_is_worth_another_start_but_not_for_ever(cause):
    assert decide([ended(cause)] * (MOST_BARREN - 1)).action == "requeue"
    assert decide([ended(cause)] * MOST_BARREN).action == "stop"
    assert decide([ended(cause, progress=True)] * 50).action == "requeue"


def test_a_node_that_was_to_blame_twice_is_excluded():
    history = [ended("node lost", host="node3"), ended("hang", host="node4"), ended("hang", host="node3")]
    assert decide(history).exclude == ("node3",)
    assert decide(history[:2]).exclude == ()


def test_a_node_is_not_blamed_for_the_programs_errors():
    assert failing_nodes([Verdict("failed", "error", "", hosts=("node1",))] * 3) == ()


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
    assert [one.progress for one in history_of(run, last.number, facts)] == [True, False, False]
    save(run, 9)
    assert [one.progress for one in history_of(run, last.number, facts)] == [True, False, True]


def test_what_an_earlier_job_went_through_does_not_count_against_this_one(run: RunFolder):
    attempt(run, 0, "7", message="boom")
    attempt(run, 0, "7", message="boom")
    attempt(run, 0, "8", message="boom")
    assert len(history_of(run, 3, Facts(number=3, start={"first_step": 0, "job_id": "8"}))) == 1
    assert len(history_of(run, 2, Facts(number=2, start={"first_step": 0, "job_id": "7"}))) == 2


def test_an_attempt_nobody_judged_whose_job_goes_on_was_requeued_by_slurm(run: RunFolder):
    first = attempt(run, 0, "7")
    attempt(run, 0, "7")
    assert verdict_of(run, first).cause == "requeued"
    write_json(first.verdict_file, {"batch_signal": "TERM", "action": "stop", "job_id": "7"})
    assert verdict_of(run, first).cause == "requeued"
    write_json(first.verdict_file, {"slurm_state": "NODE_FAIL", "job_id": "7"})
    assert verdict_of(run, first).cause == "node lost"


def call(run: RunFolder, number: int, *options: str) -> tuple[dict[str, str], str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sft_dist.recipe.verdict", str(run.path), str(number), *options],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "pydantic", "yaml", "numpy"}
    said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time"))
    return dict(line.split("=", 1) for line in done.stdout.splitlines()), said


def test_the_batch_script_is_answered_in_lines_it_can_read(run: RunFolder):
    attempt(run, 0, message="boom")
    answer, said = call(run, 1, "--exit-code", "143")
    assert answer == {"action": "requeue", "exclude": "", "exit": "1", "state": "failed"}
    assert "rank 0 on node1: RuntimeError: boom; see attempts/001/rank-0.log" in said
    attempt(run, 0, message="boom")
    answer, said = call(run, 2, "--exit-code", "143")
    assert answer["action"] == "stop"
    assert "failed twice in the same way at step 7" in said


def test_a_job_that_fails_before_its_ranks_say_where_they_start_is_not_tried_for_ever(run: RunFolder, monkeypatch):
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
    made.verdict_file.unlink()
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert call(run, 1, "--batch-signal", "USR1")[0]["action"] == "requeue"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert call(run, 1, "--batch-signal", "USR1")[0]["action"] == "stop"


@pytest.mark.parametrize(
    ("start_s_ago", "limit", "cause"),
    [(60, "1-00:00:00", "preempted"), (3500, "1:00:00", "time limit"), (60, "1:00", "time limit")],
)
def test_a_warning_near_the_time_limit_is_the_time_limits(
    run: RunFolder, tmp_path, monkeypatch, start_s_ago, limit, cause
):
    made = attempt(run, 0)
    write_json(made.outcome_file, {"state": "stopped", "reason": "asked to stop"})
    start = datetime.fromtimestamp(time.time() - start_s_ago).isoformat(timespec="seconds")
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho {start} {limit}\n")
    (tmp_path / "squeue").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    _, said = call(run, 1, "--batch-signal", "USR1")
    assert f"saved and stopped: {cause}" in said


def test_facts_of_a_half_written_attempt_do_not_raise(run: RunFolder):
    made = attempt(run, 0)
    made.outcome_file.write_text('{"state": "fin')
    made.hang_file.write_text("[]")
    made.error_file(1).write_text("")
    assert verdict_of(run, made).state == "killed"
