"""Starts helper processes, which count, evaluate, export and predict. They import torch; this one does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import sft_dist


def environment() -> dict[str, str]:
    """Returns this process's environment, with the imported sft_dist first on the path."""
    root = str(Path(sft_dist.__file__).parent.parent)
    user_path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([root, user_path] if user_path else [root]),
    }


def run_module(module: str, arguments: Sequence[str | Path]) -> int:
    """Runs `python -m MODULE ...` with this process's input and output; returns the exit code."""
    process = subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], env=environment())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it to the subprocess, too, which ends and gives the exit code
