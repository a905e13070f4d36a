"""A script that stands for several runs: a job array that trains them. Pure."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from launch.slurm.job import directives, requeue_functions
from launch.slurm.templates import fill

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster
    from launch.slurm.resources import Request


def array_script(
    request: Request, cluster: Cluster, name: str, list_file: Path, num_runs: int, parallel: int | None
) -> str:
    """Renders the script of an array: each task runs the `job.sbatch` of the run folder that its line of `list_file` names."""
    fields = {
        "tasks": f"0-{num_runs - 1}" + (f"%{parallel}" if parallel else ""),
        "directives": "\n".join(directives(request, cluster, name)),
        "num_runs": num_runs,
        "name": name,
        "requeue_functions": requeue_functions(cluster),
        "list_file": shlex.quote(str(list_file)),
    }
    return fill("array.sbatch.tmpl", fields)
