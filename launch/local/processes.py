"""Finds and ends every process of one attempt.

torchrun puts each rank into a session of its own, so killing the launcher's process group leaves the ranks alive; a
rank whose parent was killed belongs to init. What they cannot lose is the environment they were started with, so an
attempt's processes carry a token in it, by which they are found.
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
SAVING_S = 120.0  # for ranks to save after SIGTERM when the launcher is gone


def new_token() -> str:
    return secrets.token_hex(16)


def with_token(token: str) -> list[int]:
    """Returns the ids of live processes that were started with this token."""
    variable = f"{TOKEN}={token}".encode()
    ids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # ended by now, or another user's
            if variable in (entry / "environ").read_bytes().split(b"\0"):
                ids.append(int(entry.name))
    return ids


def end_all(token: str, grace_s: float, spare: int = 0) -> None:
    """Sends SIGTERM, waits `grace_s` for ranks to save, then sends SIGKILL until all have ended.

    `spare` gets no SIGTERM: it is `accelerate launch`, which waits for its ranks, but kills them 30 s after a SIGTERM of its
    own, or leaves them running when it started only one.
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
    """A small process that ends an attempt's processes when this process has ended, even by kill -9."""

    pipe: int
    process: int
    token: str

    @classmethod
    def start(cls, token: str) -> Guard:
        """Starts a guard. Must fork before any file is opened for the attempt: the guard would hold it open."""
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            _watch(reading, writing, token)
        os.close(reading)
        return cls(writing, process, token)

    def spare(self, process: int) -> None:
        """Names the process that `end_all` lets end by itself."""
        os.write(self.pipe, str(process).encode())

    def dismiss(self) -> None:
        """Ends the attempt's processes, if any are left, and the guard."""
        os.close(self.pipe)
        os.waitpid(self.process, 0)


def _watch(reading: int, writing: int, token: str) -> None:
    """Runs in the guard: reads until the other end is closed, which the kernel does when its owner ends."""
    try:
        os.close(writing)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        spare = b""
        while chunk := os.read(reading, 64):
            spare += chunk
        end_all(token, SAVING_S, int(spare or 0))
    finally:
        os._exit(0)
