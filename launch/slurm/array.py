"""Scripts that stand for several runs: a job array that trains them, and the sweep that judges them. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launch.slurm.job import CLEAN, contained, exports, header, software, srun_options

if TYPE_CHECKING:
    from launch.clusters import Cluster
    from launch.slurm.request import Request


def array_script(asked: Request, cluster: Cluster, name: str, folders: Path, count: int, parallel: int | None) -> str:
    """One task for each line of the file `folders`; each runs the `job.sbatch` of the capsule named there."""
    tasks = f"0-{count - 1}" + (f"%{parallel}" if parallel else "")
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --array={tasks}",
            *header(asked, cluster, name),
            f"# {count} runs of {name}: task N trains the one on line N+1 of the list.",
            f"LIST={shlex.quote(str(folders))}",
            'RUN=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$LIST")',
            '[[ $RUN == /* ]] || { echo "no line $((SLURM_ARRAY_TASK_ID + 1)) in $LIST" >&2; exit 1; }',
            'exec bash "$RUN/job.sbatch"',
            "",
        ]
    )


def evaluation_script(
    asked: Request, cluster: Cluster, name: str, folders: Path, board: Path, python: str, env: Mapping[str, str]
) -> str:
    """Judges what the runs in the file `folders` have saved, whatever became of the runs themselves."""
    sweep = contained(cluster, '"$PYTHON" -m sft_dist.evaluate "${trained[@]}" --leaderboard "$RUN"')
    return "\n".join(
        [
            "#!/bin/bash",
            *header(asked, cluster, f"{name}-eval", warned=False),
            f"# Scores every checkpoint of the runs of {name}, chooses one, tests and exports it.",
            "",
            CLEAN,
            *exports(cluster, env),
            f"LIST={shlex.quote(str(folders))}",
            f"export RUN={shlex.quote(str(board))}",
            f"export PYTHON={shlex.quote(python)}",
            "umask 077",
            "",
            *software(cluster),
            "trained=()",
            "while IFS= read -r folder; do",
            '  saved=("$folder"/checkpoints/step-*)',
            '  [[ -e ${saved[0]} ]] && trained+=("$folder")',
            'done <"$LIST"',
            '((${#trained[@]})) || { echo "none of these runs saved a checkpoint, so there is nothing to judge"; exit 0; }',
            'echo "judging ${#trained[@]} run(s)"',
            'export PYTHONPATH="${trained[0]}/source"',
            'cd "${trained[0]}" || exit 1',
            "[[ ${SLURM_CPUS_PER_TASK-} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
            f"exec srun --nodes=1 --ntasks=1 --export=ALL {srun_options(cluster)}\\",
            f"  {sweep}",
            "",
        ]
    )
