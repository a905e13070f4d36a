"""Helper processes: counting, evaluating, exporting, predicting. They import torch; this one does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import sft_dist


def environment() -> dict[str, str]:
    """This process's environment, with the sft_dist that is imported here first on the path."""
    here = str(Path(sft_dist.__file__).parent.parent)
    rest = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([here, rest] if rest else [here]),
    }


def run_module(module: str, arguments: Sequence[str | Path]) -> int:
    """`python -m MODULE ...` with this process's own input and output; the exit code."""
    process = subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], env=environment())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it to the child too, which ends; its exit code is the answer
