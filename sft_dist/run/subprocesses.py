"""Starts modules of this package in processes that import nothing from the working directory: a `datasets.py` there would be
imported, and run, in the place of the library."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import sft_dist

# Python 3.10 has no PYTHONSAFEPATH. With `-m` it searches the working directory before anything of ours runs.
_ENTRY = (
    "import sys; sys.path[:] = [path for path in sys.path if path]; del sys.argv[0]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def module_command(module: str, arguments: Sequence[str | Path] = (), python: str = sys.executable) -> list[str]:
    """Returns the command that runs `python -m MODULE ...` in the `environment`."""
    return [python, "-c", _ENTRY, module, *map(str, arguments)]


def environment() -> dict[str, str]:
    """Returns this process's environment, with the imported sft_dist first on the path and the working directory not on it."""
    root = str(Path(sft_dist.__file__).parent.parent)
    user_path = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([root, *user_path]),
        "PYTHONSAFEPATH": "1",
    }
