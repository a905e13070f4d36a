"""Starts helper processes, which count, evaluate, export and predict. They import torch; this one does not."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import sft_dist

PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)


def environment() -> dict[str, str]:
    """Returns this process's environment, with the imported sft_dist first on the path and the working directory not on it: a
    `datasets.py` there would be imported, and run, in the place of the library."""
    root = str(Path(sft_dist.__file__).parent.parent)
    user_path = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([root, *user_path]),
        "PYTHONSAFEPATH": "1",
    }


def run_module(module: str, arguments: Sequence[str | Path]) -> int:
    """Runs `python -m MODULE ...` with this process's input and output; returns the exit code."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(command, env=environment(), preexec_fn=end_with_parent)
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
