"""Why attempts end, and which rank was first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sft_dist.recipe.files import write_json
from sft_dist.run.causes import (
    Facts,
    cause_of,
    classify_attempt,
    classify_facts,
    parse_killed_ranks,
    read_facts,
    reason_in,
)
from sft_dist.run.folder import RunFolder
from sft_dist.run.requeue_policy import MAX_ATTEMPTS_IN_USE, EndedAttempt, decide, failing_nodes

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


def heartbeat(rank: int, time: float = 10.0, phase: str = "training") -> dict[str, Any]:
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
def test_an_error_has_the_cause_that_its_message_shows(type, message, cause):
    assert cause_of(error(0, message, type)) == cause


def test_an_error_while_examples_are_read_is_a_data_error():
    frames = 'File "/runs/x/source/sft_dist/data/sources.py", line 3, in read\nKeyError'
    assert cause_of(error(0, "'text'", "KeyError", traceback=frames)) == "data"
    frames = 'File "/runs/x/source/sft_dist/training/loop.py", line 3, in run\nKeyError'
    assert cause_of(error(0, "'text'", "KeyError", traceback=frames)) == "error"


# ── which rank was first ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_lost_connections_are_secondary_to_another_ranks_error_even_if_its_clock_is_late():
    facts = Facts(errors=(error(0, PEER, time=10.0), error(5, "CUDA out of memory", "OutOfMemoryError", time=12.0)))
    end = classify_facts(facts)
    assert (end.rank, end.host, end.cause) == (5, "node2", "out of memory")
    assert end.line == (
        "rank 5 on node2: out of memory (OutOfMemoryError: CUDA out of memory); see attempts/001/rank-5.log"
    )


def test_a_rank_killed_by_a_signal_writes_nothing_and_is_named_by_its_agent():
    facts = Facts(
        errors=tuple(error(rank, PEER) for rank in range(8) if rank != 5),
        heartbeats=tuple(heartbeat(rank) for rank in range(8)),
        killed_ranks=parse_killed_ranks(AGENT),
    )
    end = classify_facts(facts)
    assert (end.rank, end.host, end.cause, end.at_step) == (5, "node2", "killed", 7)
    assert end.line.startswith("rank 5 on node2: killed by signal 9")


def test_without_an_agents_report_the_silent_rank_with_the_oldest_heartbeat_is_named():
    facts = Facts(
        errors=tuple(error(rank, PEER) for rank in range(6)),  # 6 was ended by its agent, 7 before
        heartbeats=(*(heartbeat(rank, time=20.0) for rank in range(7)), heartbeat(7, time=11.0)),
    )
    assert classify_facts(facts).rank == 7


def test_a_rank_that_exits_early_and_well_is_named_instead_of_its_victims():
    facts = Facts(
        errors=tuple(error(rank, PEER) for rank in (0, 2, 3)),
        heartbeats=(*(heartbeat(rank, phase="ended") for rank in (0, 2, 3)), heartbeat(1, time=9.0, phase="ended")),
    )
    end = classify_facts(facts)
    assert (end.rank, end.at_step) == (1, 7)
    assert end.line.startswith("rank 1 on node1: exited without an error message at step 7")


def test_ranks_ended_by_torchruns_own_sigterm_are_not_named():
    log = AGENT.replace("rank      : 5", "rank      : 2").replace("exitcode  : -9", "exitcode  : -15") + AGENT
    assert [rank["rank"] for rank in parse_killed_ranks(log)] == [5]


def test_a_host_whose_ranks_are_all_silent_is_a_lost_node():
    facts = Facts(
        errors=tuple(error(rank, PEER) for rank in range(4)), heartbeats=tuple(heartbeat(rank) for rank in range(8))
    )
    end = classify_facts(facts)
    assert (end.cause, end.host, end.hosts) == ("node lost", "node2", ("node2",))


def test_only_lost_connections_and_no_silent_rank_is_the_network():
    facts = Facts(
        errors=(error(0, PEER, time=11.0), error(4, "NCCL timeout", time=10.0)), heartbeats=(heartbeat(0), heartbeat(4))
    )
    end = classify_facts(facts)
    assert (end.cause, end.rank, end.host) == ("network", 4, "node2")
    assert end.hosts == ()  # the first rank to complain need not be to blame


def test_a_run_that_another_process_still_trains_is_tried_again():
    """A node is unreachable, and its rank 0 runs for a while."""
    end = classify_facts(
        Facts(errors=(error(0, "another process is training this run", type="InUse", user_error=True),))
    )
    assert (end.cause, end.user_error) == ("in use", True)
    assert decide([EndedAttempt(end, False)] * (MAX_ATTEMPTS_IN_USE - 1)).action == "requeue"
    assert decide([EndedAttempt(end, False)] * MAX_ATTEMPTS_IN_USE).action == "stop"


def test_a_rank_that_used_too_much_memory_is_not_the_fault_of_its_node(tmp_path):
    attempt = RunFolder(tmp_path).new_attempt()
    attempt.launcher_log.write_text(
        f"{AGENT}slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n"
    )
    for rank in range(8):
        write_json(attempt.path / f"rank-{rank}.beat.json", heartbeat(rank))
        if rank != 5:
            write_json(attempt.error_file(rank), error(rank, PEER))
    end = classify_facts(read_facts(attempt))
    assert (end.cause, end.rank) == ("out of memory", 5)
    assert "more memory than the job has" in end.line
    assert failing_nodes([end, end]) == ()


def test_ranks_that_lose_each_other_while_slurm_ends_them_do_not_blame_the_network():
    facts = Facts(errors=(error(0, PEER), error(1, PEER)), heartbeats=(heartbeat(0), heartbeat(1)), started_again=True)
    assert classify_facts(facts).cause == "requeued"


@pytest.mark.parametrize(
    ("facts", "state", "cause"),
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
def test_silence_and_orderly_stops_are_explained_by_what_slurm_reports(facts, state, cause):
    end = classify_facts(Facts(**facts))
    assert (end.state, end.cause) == (state, cause)


def test_a_hang_names_the_rank_that_the_watcher_blames():
    hang = {
        "kind": "silent",
        "rank": 3,
        "host": "node1",
        "hosts": ["node1"],
        "step": 9,
        "line": "rank 3 on node1 stopped",
    }
    end = classify_facts(Facts(hang=hang, errors=(error(0, PEER),)))
    assert (end.cause, end.rank, end.hosts, end.line) == (
        "hang", 3, ("node1",), "rank 3 on node1 stopped; see attempts/001/hang.json",
    )  # fmt: skip


def test_a_hang_without_a_rank_to_blame_blames_none():
    hang = {"kind": "all", "rank": None, "host": "", "hosts": [], "step": 9, "line": "all 4 ranks: no progress"}
    end = classify_facts(Facts(hang=hang))
    assert (end.cause, end.rank, end.hosts) == ("hang", None, ())


def test_facts_of_a_half_written_attempt_do_not_raise(tmp_path: Path):
    (tmp_path / "attempts").mkdir()
    run = RunFolder(tmp_path)
    attempt = run.new_attempt()
    write_json(attempt.start_file, {"first_step": 0})
    attempt.outcome_file.write_text('{"state": "fin')
    attempt.hang_file.write_text("[]")
    attempt.error_file(1).write_text("")
    assert classify_attempt(run, attempt).state == "killed"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("14:00:01 1 node(s), meeting at node1:10077\n/venv/bin/python: No module named accelerate\n"
         "srun: error: node1: task 0: Exited with exit code 1\n", "/venv/bin/python: No module named accelerate"),
        ("FATAL:   could not open image /x.sif: no such file or directory\n", "FATAL:   could not open image /x.sif: no such file or directory"),
        ("Traceback (most recent call last):\n  File x\nRuntimeError: bad\n"
         "subprocess.CalledProcessError: Command 'x' returned non-zero exit status 1.\n", "RuntimeError: bad"),
        ("all is well\n", ""),
    ],
)  # fmt: skip
def test_the_line_of_a_log_that_names_a_reason_is_the_last_that_is_no_consequence(log, reason):
    assert reason_in(log) == reason


def test_an_environment_without_a_module_is_the_same_on_every_node_and_not_tried_again():
    end = classify_facts(Facts(exit={"returncode": 1}, reason="/venv/bin/python: No module named accelerate"))
    assert end.cause == "software"
    assert "no rank reported an error: /venv/bin/python: No module named accelerate; see" in end.line
    assert classify_facts(Facts(exit={"returncode": 1}, reason="Error: x")).cause == "error"
    assert decide([EndedAttempt(end, False)]).action == "stop"


def test_a_hub_that_does_not_answer_is_asked_again():
    unreachable = error(0, "the hub cannot be reached", type="HubUnreachable", user_error=True)
    assert classify_facts(Facts(errors=(unreachable,))).cause == "error"
    assert classify_facts(Facts(errors=({**unreachable, "type": "NotInCache"},))).cause == "user error"
