"""One controller at a time, and never another because the first is slow."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.search.lease import OWNER, lease, may_live
from sft_dist.recipe.errors import InUse
from tests.launch.conftest import ROOT

HOLD = "import sys; from pathlib import Path; from launch.search.lease import lease\nwith lease(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()


@pytest.mark.slow
def test_a_stopped_owner_keeps_its_lease_and_a_killed_one_does_not(holder, tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    old = 1.0
    os.utime(tmp_path / OWNER, (old, old))
    with pytest.raises(InUse, match=f"controlled by process {holder.pid} on {socket.gethostname()}"), lease(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with lease(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / OWNER).exists()


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_locks_the_owners_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    with lease(tmp_path), pytest.raises(InUse), lease(tmp_path):
        pass
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "start_ticks": 1}
    (tmp_path / OWNER).write_text(json.dumps(owner))  # another process had this number before
    with lease(tmp_path):
        pass
    (tmp_path / OWNER).write_text(json.dumps({"host": "elsewhere", "pid": 1, "start_ticks": 1}))
    with pytest.raises(InUse, match="if that process no longer exists, remove"), lease(tmp_path):
        pass


def test_the_owner_of_a_job_lives_while_slurm_has_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.slurm import queue

    monkeypatch.setattr(queue, "read_queue", lambda: {"7": object()})
    assert may_live({"host": "elsewhere", "job": "7"})
    assert not may_live({"host": "elsewhere", "job": "8"})
    assert not may_live({})
