"""A script that stands for several runs: a job array that trains them. Pure."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from launch.slurm.job import again, header

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster
    from launch.slurm.resources import Request


def array_script(asked: Request, cluster: Cluster, name: str, folders: Path, count: int, parallel: int | None) -> str:
    """One task for each line of the file `folders`; each runs the `job.sbatch` of the capsule named there."""
    tasks = f"0-{count - 1}" + (f"%{parallel}" if parallel else "")
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --array={tasks}",
            *header(asked, cluster, name),
            f"# {count} runs of {name}: task N trains the one on line N+1 of the list.",
            "",
            again(cluster),
            f"LIST={shlex.quote(str(folders))}",
            '[[ -r $LIST ]] || elsewhere "read $LIST"',
            'RUN=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$LIST")',
            '[[ $RUN == /* ]] || { echo "no line $((SLURM_ARRAY_TASK_ID + 1)) in $LIST" >&2; exit 1; }',
            'exec bash "$RUN/job.sbatch"',
            "",
        ]
    )
