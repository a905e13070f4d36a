"""Starts helper processes, which count, evaluate, export and predict. They import torch; this one does not."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sft_dist.run.subprocesses import environment, module_command

PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)


def run_module(module: str, arguments: Sequence[str | Path]) -> int:
    """Runs `python -m MODULE ...` with this process's input and output; returns the exit code."""
    process = subprocess.Popen(module_command(module, arguments), env=environment(), preexec_fn=end_with_parent)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it to the subprocess, too, which ends and gives the exit code


def end_with_parent() -> None:
    """Runs in a new process: the kernel sends it SIGTERM when its parent ends, however the parent ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def clean_up_on_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into SystemExit, so that `finally` and `with` blocks run. Needs the main thread."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
