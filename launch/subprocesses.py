"""Starts helper processes, which count, evaluate, export and predict. They import torch; this one does not."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from sft_dist.run.subprocesses import environment, module_command

NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})
PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)


def start_module(
    module: str, arguments: Sequence[str | Path], env: Mapping[str, str] = NO_ENVIRONMENT
) -> subprocess.Popen[bytes]:
    """Starts `python -m MODULE ...` with this process's input and output, and with `env` added to its environment."""
    return subprocess.Popen(module_command(module, arguments), env={**environment(), **env}, preexec_fn=end_with_parent)


def run_module(module: str, arguments: Sequence[str | Path], env: Mapping[str, str] = NO_ENVIRONMENT) -> int:
    """Runs `python -m MODULE ...` like `start_module`; returns the exit code."""
    process = start_module(module, arguments, env)
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
