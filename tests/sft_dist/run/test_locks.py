"""Locks between processes; all five places that use them work on a file system without locks, too."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from launch.local import runner
from launch.plan import Plan
from launch.slurm import submit
from sft_dist.run.attempt import is_running, take_lock
from sft_dist.run.folder import RunFolder
from sft_dist.run.locks import acquire, is_locked, locked, open_lock_file, try_acquire


def try_elsewhere(path: Path) -> bool:
    """Whether another opening of the file gets the lock."""
    descriptor = open_lock_file(path)
    try:
        return try_acquire(descriptor)
    finally:
        os.close(descriptor)


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
        assert not try_elsewhere(path)
    assert not is_locked(path)
    assert try_elsewhere(path)


def test_a_process_inherits_the_lock_of_a_file_it_inherits(tmp_path: Path) -> None:
    path = tmp_path / "launcher.log"
    descriptor = open_lock_file(path)
    acquire(descriptor)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=descriptor)
    os.close(descriptor)
    assert is_locked(path)
    child.communicate(b"\n")
    assert not is_locked(path)


def test_a_lock_file_is_neither_truncated_nor_followed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("precious")
    with locked(tmp_path / "thesis"):
        assert (tmp_path / "thesis").read_text() == "precious"
    (tmp_path / "lock").symlink_to(tmp_path / "thesis")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "lock"):
        pass
    with pytest.raises(OSError, match="symbolic links"):
        open_lock_file(tmp_path / "lock")


# ── a file system without locks ─────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The operations that were refused."""
    refused: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        refused.append(operation)
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    return refused


def test_a_trainer_starts_without_locks(tmp_path: Path, without_locks: list[int]) -> None:
    folder = RunFolder(tmp_path)
    os.close(take_lock(folder))
    assert folder.lock_file.read_text().split()[1] == str(os.getpid())
    assert without_locks


def test_a_state_is_read_without_locks(tmp_path: Path, without_locks: list[int]) -> None:
    RunFolder(tmp_path).lock_file.touch()
    assert not is_running(RunFolder(tmp_path))
    assert without_locks


def test_a_submission_is_made_without_locks(tmp_path: Path, without_locks: list[int]) -> None:
    with submit.exclusive(tmp_path):
        assert (tmp_path / ".submissions").is_dir()
    assert without_locks


def test_a_run_is_started_here_without_locks(tmp_path: Path, without_locks: list[int]) -> None:
    folder = RunFolder(tmp_path)
    attempt = folder.new_attempt()
    plan = cast(Plan, SimpleNamespace(env={"PYTHONPATH": "."}, argv=(sys.executable, "-c", "print('trained')")))
    assert runner._start(folder, plan, attempt, "token").wait() == 0
    assert attempt.launcher_log.read_text() == "trained\n"
    assert without_locks


@pytest.mark.parametrize("is_first", [True, False])
def test_data_is_prepared_without_locks(tmp_path: Path, without_locks: list[int], is_first: bool) -> None:
    """The second of two processes that prepare the same data at the same moment uses what the first has made."""
    from sft_dist.data.cached_folder import cached_folder

    def build(path: Path) -> None:
        (path / "rows").write_text("second")
        if not is_first:
            (tmp_path / "prepared").mkdir()
            (tmp_path / "prepared/rows").write_text("first")

    with cached_folder(tmp_path / "prepared", build) as folder:
        assert (folder / "rows").read_text() == ("second" if is_first else "first")
    assert without_locks
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["prepared"]


def test_another_error_of_the_file_system_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path / "lock"):
        pass
