"""A rank's heartbeat. Real training is stopped in tests/integration/test_hang.py."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft_dist.run.folder import AttemptFolder
from sft_dist.run.heartbeat import FASTEST_S, SLOWEST_S, Heartbeat, interval_of


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptFolder:
    (tmp_path / "001").mkdir()
    return AttemptFolder(tmp_path / "001")


def read_heartbeat(attempt: AttemptFolder) -> dict:
    deadline = time.monotonic() + 5
    while not attempt.heartbeat_file(0).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return json.loads(attempt.heartbeat_file(0).read_text())


@pytest.mark.slow
def test_a_waiting_rank_has_a_heartbeat_without_progress(attempt):
    heartbeat = Heartbeat(attempt, 0, timeout_s=1)
    heartbeat.tick(5, "training")
    time.sleep(3 * FASTEST_S)
    first = later = read_heartbeat(attempt)
    deadline = time.monotonic() + 30
    while later["time"] == first["time"] and time.monotonic() < deadline:
        later = read_heartbeat(attempt)
    heartbeat.stop()
    assert (first["step"], first["phase"]) == (later["step"], later["phase"]) == (5, "training")
    assert later["time"] > first["time"]


def test_the_last_heartbeat_is_that_it_has_ended(attempt):
    heartbeat = Heartbeat(attempt, 0, timeout_s=1)
    heartbeat.tick(9, "saving")
    heartbeat.stop()
    assert (read_heartbeat(attempt)["step"], read_heartbeat(attempt)["phase"]) == (9, "ended")


def test_heartbeats_are_as_rare_as_the_timeout_allows():
    assert interval_of(1) == FASTEST_S
    assert interval_of(100) == 5
    assert interval_of(1800) == SLOWEST_S


def test_a_tick_costs_nothing_and_writes_nothing_by_itself(attempt):
    heartbeat = Heartbeat(attempt, 0, timeout_s=1800)
    started = time.thread_time()
    for step in range(100_000):
        heartbeat.tick(step, "training")
    assert time.thread_time() - started < 1
    assert not attempt.heartbeat_file(0).exists()
    heartbeat.stop()


def test_a_full_disk_does_not_stop_training(attempt, monkeypatch):
    heartbeat = Heartbeat(attempt, 0, timeout_s=1)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    heartbeat.tick(1, "training")
    time.sleep(2 * FASTEST_S)
    assert heartbeat._thread.is_alive()
    heartbeat.stop()


STUCK = """
import sys, time
from pathlib import Path
from sft_dist.run.heartbeat import Heartbeat
from sft_dist.run.folder import AttemptFolder
attempt = AttemptFolder(Path(sys.argv[1]))
heartbeat = Heartbeat(attempt, 0, timeout_s=0.5)
def tick_and_wait(step, phase):
    heartbeat.tick(step, phase)
    while f'"step": {step}' not in (attempt.heartbeat_file(0).read_text() if attempt.heartbeat_file(0).exists() else ""):
        time.sleep(0.01)
tick_and_wait(1, "training")
def spin_with_the_lock_held():
    import re
    re.match("(a+)+b", "a" * 26)  # seconds in C code, without letting any other thread run
def slow_but_well():
    time.sleep(1.5)
if sys.argv[2] == "training":
    spin_with_the_lock_held()
else:
    tick_and_wait(2, "saving")
    slow_but_well()
heartbeat.stop()
"""


@pytest.mark.parametrize("phase", ["training", "saving"])
@pytest.mark.slow
def test_a_rank_without_progress_says_where_it_stands_even_with_the_interpreter_locked(attempt, phase):
    subprocess.run([sys.executable, "-c", STUCK, str(attempt.path), phase], check=True, timeout=60)
    stack = attempt.stack_file(0).read_text()
    if phase == "training":
        assert "in spin_with_the_lock_held" in stack
    else:
        assert "slow_but_well" not in stack
