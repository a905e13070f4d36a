"""Find and end every process of one attempt, wherever it went.

torchrun puts each rank into a session of its own, so killing the launcher's process group leaves the ranks alive; a
rank whose parent was killed belongs to init. What they cannot lose is the environment they were started with, so an
attempt's processes carry a token in it and are found by that.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from dataclasses import dataclass
from pathlib import Path

TOKEN = "SFT_DIST_TOKEN"
SAVING_S = 120.0  # how long ranks may take to save after SIGTERM when nobody is waiting


def new_token() -> str:
    return secrets.token_hex(16)


def with_token(token: str) -> list[int]:
    """Ids of live processes that were started with this token."""
    wanted = f"{TOKEN}={token}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # gone by now, or somebody else's
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def end_all(token: str, grace_s: float, spare: int = 0) -> None:
    """SIGTERM, `grace_s` to save, then SIGKILL until none is left.

    `spare` gets no SIGTERM: `accelerate launch`, which waits for its ranks if it is left alone, but kills them 30 s
    after a SIGTERM of its own, or leaves them behind when it started only one.
    """
    _signal(with_token(token), signal.SIGTERM, spare)
    deadline = time.monotonic() + grace_s
    while alive := with_token(token):
        if time.monotonic() > deadline:
            _signal(alive, signal.SIGKILL)
        time.sleep(0.05)


def _signal(processes: list[int], number: signal.Signals, spare: int = 0) -> None:
    for process in processes:
        if process != spare:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


@dataclass
class Guard:
    """A small process that ends an attempt's processes once this process is gone, even by kill -9."""

    pipe: int
    process: int
    token: str

    @classmethod
    def start(cls, token: str) -> Guard:
        """Fork before any file is opened for the attempt: the guard would hold it open."""
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            _watch(reading, writing, token)
        os.close(reading)
        return cls(writing, process, token)

    def spare(self, process: int) -> None:
        """Name the process that `end_all` lets end by itself."""
        os.write(self.pipe, str(process).encode())

    def dismiss(self) -> None:
        """Nothing of the attempt is alive afterwards."""
        os.close(self.pipe)
        os.waitpid(self.process, 0)


def _watch(reading: int, writing: int, token: str) -> None:
    """The guard: reads until the other end is closed, which the kernel does when its owner dies."""
    try:
        os.close(writing)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        told = b""
        while chunk := os.read(reading, 64):
            told += chunk
        end_all(token, SAVING_S, int(told or 0))
    finally:
        os._exit(0)
