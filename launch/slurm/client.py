"""Slurm's own commands, called without a shell and without the variables of an enclosing job."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sft_dist.recipe.errors import UserError

TIMEOUT_S = 120  # of one call of sbatch or squeue
# Variables of an enclosing job or of the user's shell, which would override the cluster file.
_FOREIGN = re.compile(
    r"(SLURM|SBATCH|SRUN|SLURMD|SQUEUE|SACCT|SCANCEL|SINFO|PMIX?|PMI2|SUBMITIT|MASTER)_.*|SFT_DIST_ATTEMPT|SFT_DIST_TOKEN"
    r"|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|PYTHONPATH"
)

CommandRunner = Callable[[Sequence[str]], str]


def sbatch(options: Sequence[str], script: Path) -> str:
    """Submits a script; returns the new job's id. Raises UserError with the message of sbatch."""
    output = run_command(["sbatch", "--parsable", *options, str(script)])
    job_id = output.strip().split(";")[0]
    if not job_id.isdecimal():
        raise UserError(f"sbatch printed {output.strip()[:200]!r} instead of a job id")
    return job_id


def run_command(argv: Sequence[str]) -> str:
    """Returns the output of one Slurm command. Raises UserError with its error message."""
    try:
        process = subprocess.run(
            argv, env=clean_environment(os.environ), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise UserError(f"{argv[0]} not found: run this where Slurm's commands are installed (a login node)") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{argv[0]} did not answer within {TIMEOUT_S} s; try again, submitting again is safe") from None
    if process.returncode:
        message = process.stderr.strip() or process.stdout.strip() or f"exit code {process.returncode}"
        raise UserError(message if message.startswith(argv[0]) else f"{argv[0]}: {message}")
    return process.stdout


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment without an enclosing job's variables (SLURM_CPU_BIND pins every rank to a few cores), but
    with SLURM_CONF, which leads to Slurm."""
    return {key: value for key, value in environment.items() if key == "SLURM_CONF" or not _FOREIGN.fullmatch(key)}
