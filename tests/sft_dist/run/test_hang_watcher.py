"""Heartbeats and stacks tell which rank hangs; the test sets the clock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft_dist.run import hang_watcher
from sft_dist.run.causes import read_facts
from sft_dist.run.folder import AttemptFolder
from sft_dist.run.hang_watcher import SLOW_PHASE_FACTOR, HangDetector, innermost

STACK = """\
Timeout (0:00:02)!
Thread 0x00007f (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait
  File "/run/source/sft_dist/run/heartbeat.py", line 60 in _write_until_stopped

Thread 0x00007e (most recent call first):
  File "{file}", line {line} in {function}
  File "/run/source/sft_dist/train.py", line 90 in train
"""
IN_BACKWARD = STACK.format(file="/lib/torch/autograd/graph.py", line=800, function="_engine_run_backward")
READING = STACK.format(file="/run/source/sft_dist/tasks/text_classification.py", line=70, function="collate")


class Ranks:
    """Writes what ranks would write, and turns the clock."""

    def __init__(self, attempt: AttemptFolder, hosts: list[str], timeout_s: float = 10) -> None:
        self.attempt, self.hosts, self.now = attempt, hosts, 0.0
        self.detector = HangDetector(attempt, timeout_s, start_s=100, clock=lambda: self.now)

    def live(self, seconds: float, ranks: dict[int, tuple[int, str]]):
        """These ranks have heartbeats at (step, phase) for so long, with a check each second. The others are silent."""
        hang = None
        for _ in range(round(seconds)):
            self.now += 1
            for rank, (step, phase) in ranks.items():
                heartbeat = {
                    "rank": rank,
                    "host": self.hosts[rank],
                    "pid": 1,
                    "step": step,
                    "phase": phase,
                    "time": self.now,
                }
                self.attempt.heartbeat_file(rank).write_text(json.dumps(heartbeat))
            hang = hang or self.detector.check()
        return hang


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptFolder:
    (tmp_path / "attempts/001").mkdir(parents=True)
    return AttemptFolder(tmp_path / "attempts/001")


@pytest.fixture
def four(attempt) -> Ranks:
    return Ranks(attempt, ["node1", "node1", "node2", "node2"])


def all_ranks(step: int, phase: str = "training", but: tuple[int, ...] = ()) -> dict[int, tuple[int, str]]:
    return {rank: (step, phase) for rank in range(4) if rank not in but}


def test_steps_that_come_in_time_are_no_hang(four):
    for step in range(1, 6):
        assert four.live(9, all_ranks(step)) is None


def test_a_rank_whose_process_is_stopped_is_named_within_twice_the_timeout(four):
    four.live(3, all_ranks(1))
    began = four.now
    hang = None
    while hang is None:
        hang = four.live(1, all_ranks(1, but=(2,)))  # the others wait
        assert four.now - began <= 20
    assert (hang.kind, hang.rank, hang.host, hang.ranks, hang.hosts) == ("silent", 2, "node2", (2,), ("node2",))
    assert "rank 2 on node2: no heartbeat" in hang.line


def test_a_rank_that_stops_late_in_a_slow_step_is_not_mistaken_for_one_that_waits(four):
    four.live(8, all_ranks(1))
    assert four.live(5, all_ranks(1, but=(3,))) is None  # 13 s without a step, but rank 3 may still be heard of
    hang = four.live(1, all_ranks(1, but=(3,)))
    assert (hang.kind, hang.rank) == ("silent", 3)


def test_a_host_without_any_heartbeat_is_a_lost_machine(four):
    four.live(3, all_ranks(1))
    hang = four.live(12, all_ranks(1, but=(2, 3)))
    assert (hang.kind, hang.host, hang.ranks) == ("node", "node2", (2, 3))


def test_the_rank_that_is_behind_holds_the_others_up(four):
    hang = four.live(12, {**all_ranks(8), 1: (7, "training")})
    assert (hang.kind, hang.rank) == ("stuck", 1)
    assert "the others are further" in hang.line


def test_among_ranks_at_the_same_step_the_one_that_does_not_wait_is_named(four):
    for rank in range(4):
        four.attempt.stack_file(rank).write_text(READING if rank == 3 else IN_BACKWARD)
    hang = four.live(12, all_ranks(8))
    assert (hang.rank, hang.log) == (3, "rank-3.stack")
    assert "at text_classification.py:70 in collate, the others wait" in hang.line


def test_without_any_difference_no_rank_is_blamed(four):
    hang = four.live(12, all_ranks(8))
    assert (hang.kind, hang.rank, hang.hosts) == ("all", None, ())
    assert "or the network between node1 and node2" in hang.line


@pytest.mark.parametrize("phase", ["validating", "saving", "starting"])
def test_start_validation_and_saving_may_take_longer(four, phase):
    assert four.live(10 * SLOW_PHASE_FACTOR - 5, all_ranks(1, phase)) is None
    assert four.live(10, all_ranks(1, phase)) is not None


def test_a_rank_that_is_stopped_while_saving_is_noticed_all_the_same(four):
    four.live(3, all_ranks(1, "saving"))
    assert four.live(12, all_ranks(1, "saving", but=(0,))).rank == 0


def test_ranks_that_have_ended_need_no_heartbeat(four):
    four.live(3, {**all_ranks(5), 0: (5, "ended")})
    assert four.live(30, dict.fromkeys(range(4), (5, "ended"))) is None


def test_an_attempt_that_has_written_nothing_yet_is_no_hang(attempt):
    assert HangDetector(attempt, 1).check() is None


def test_a_half_written_heartbeat_is_skipped(four):
    four.live(3, all_ranks(1))
    four.attempt.heartbeat_file(1).write_text('{"rank": 1, "ho')
    assert four.live(2, all_ranks(1, but=(1,))) is None


def test_the_main_thread_is_the_last_that_faulthandler_lists():
    assert innermost(READING) == "at text_classification.py:70 in collate"
    assert innermost("") == ""


def test_a_job_that_was_suspended_does_not_hang(attempt, monkeypatch):
    """Slurm stops all its processes, this one too; afterwards every heartbeat is old."""
    heartbeat = {"rank": 0, "host": "node1", "pid": 1, "step": 4, "phase": "training", "time": 1.0}
    attempt.heartbeat_file(0).write_text(json.dumps(heartbeat))
    clock, sleeps = [0.0], iter((1.0, 1000.0, 1.0, 1.0))
    answers = iter((True, True, True, True, False))

    def sleep(_: float) -> None:
        clock[0] += next(sleeps)

    monkeypatch.setattr(hang_watcher.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(hang_watcher.time, "sleep", sleep)
    monkeypatch.setattr(hang_watcher, "_is_alive", lambda pid: next(answers))
    assert hang_watcher.watch_process(HangDetector(attempt, 60, clock=lambda: clock[0]), 1, 1.0) is None
    assert not attempt.hang_file.exists()


def test_of_an_array_only_the_task_that_hangs_is_killed(monkeypatch):
    calls: list[list[str]] = []
    monkeypatch.setattr(hang_watcher, "GRACE_S", 0.0)
    monkeypatch.setattr(hang_watcher, "_is_alive", lambda pid: True)
    monkeypatch.setattr(hang_watcher, "_signal", lambda pid, number: None)
    monkeypatch.setattr(hang_watcher.subprocess, "run", lambda argv, check: calls.append(argv))
    for name, value in (("SLURM_JOB_ID", "70"), ("SLURM_ARRAY_JOB_ID", "70"), ("SLURM_ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(name, value)
    hang_watcher.end_process(1)
    assert calls == [["scancel", "--signal=KILL", "70_3"]]


@pytest.mark.slow
def test_the_launch_is_ended_and_the_reason_is_recorded_for_the_requeue_policy(attempt):
    ignoring_sigterm = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    launch = subprocess.Popen([sys.executable, "-c", ignoring_sigterm], stdout=subprocess.PIPE, text=True)
    assert launch.stdout is not None
    launch.stdout.readline()
    heartbeat = {"rank": 0, "host": "node1", "pid": 1, "step": 4, "phase": "training", "time": 1.0}
    attempt.heartbeat_file(0).write_text(json.dumps(heartbeat))
    argv = [sys.executable, "-m", "sft_dist.run.hang_watcher", str(attempt.path.parent.parent), "1", "--timeout", "1"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    watcher = subprocess.Popen([*argv, "--pid", str(launch.pid)], env=env, stderr=subprocess.PIPE, text=True)
    assert launch.wait(60) == -signal.SIGKILL
    assert watcher.wait(60) == 0
    assert watcher.stderr is not None
    assert "rank 0 on node1" in watcher.stderr.read()
    assert read_facts(attempt).hang["rank"] == 0


@pytest.mark.slow
def test_the_watcher_leaves_when_the_launch_has_ended(attempt):
    launch = subprocess.Popen(["sleep", "0.5"])
    argv = [sys.executable, "-m", "sft_dist.run.hang_watcher", str(attempt.path.parent.parent), "1", "--timeout", "1"]
    watcher = subprocess.Popen([*argv, "--pid", str(launch.pid)])
    assert watcher.wait(60) == 0  # though nobody has waited for the launch: it is a zombie
    launch.wait()
    assert not attempt.hang_file.exists()
