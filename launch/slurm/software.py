"""Whether this machine, which submits, has the software that a cluster file names. It mostly shares folders with the nodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster

TIMEOUT_S = 30
NO_MODULE_COMMAND = 3  # exit code of the script below

# A login shell defines `module` where it is not inherited. Old versions of it exit with 0 whatever happens.
_LOAD_MODULES = f'type module >/dev/null 2>&1 || exit {NO_MODULE_COMMAND}; output=$(module load "$@" 2>&1) || {{ echo "$output"; exit 1; }}; grep -i error <<<"$output" && exit 1; exit 0'

ModuleLoader = Callable[[Sequence[str]], str]


def load_modules(modules: Sequence[str]) -> str:
    """Returns why `module load` fails on this machine; empty when it does not, or takes too long."""
    command = ["bash", "-lc", _LOAD_MODULES, "bash", *modules]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode == NO_MODULE_COMMAND:
        return "there is no command `module`"
    return " ".join(done.stdout.split())[:200] if done.returncode else ""


def missing_software(cluster: Cluster, loader: ModuleLoader = load_modules) -> list[str]:
    """Returns a line for each setting of the cluster file that does not work on this machine."""
    files = []
    if cluster.venv:
        files.append(("venv", Path(cluster.venv) / "bin/activate"))
    if cluster.conda and cluster.conda.startswith("/"):
        files.append(("conda", Path(cluster.conda) / "conda-meta"))
    if cluster.container and cluster.container.image.startswith("/"):
        files.append(("container.image", Path(cluster.container.image)))
    lines = [
        f"{setting} of cluster {cluster.name}: {file} is not on this machine"
        for setting, file in files
        if not file.exists()
    ]
    if cluster.modules and (reason := loader(cluster.modules)):
        lines.append(f"modules of cluster {cluster.name}: {reason} on this machine")
    return lines


def warn_of_missing_software(cluster: Cluster) -> bool:
    """Prints a warning for each setting that does not work on this machine; returns whether there is one."""
    lines = missing_software(cluster)
    for line in lines:
        print(f"warning: {line}; a job whose node lacks it too will fail", file=sys.stderr)
    return bool(lines)
