"""Slurm's own commands, called without a shell and without what an enclosing job left in the environment."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sft_dist.recipe.errors import UserError

PATIENCE_S = 120  # for one call of sbatch or squeue
# What a job around this one, or a shell's habits, would tell Slurm's commands behind the cluster file's back.
_FOREIGN = re.compile(
    r"(SLURM|SBATCH|SRUN|SLURMD|SQUEUE|SACCT|SCANCEL|SINFO|PMIX?|PMI2|SUBMITIT|MASTER)_.*|SFT_DIST_ATTEMPT|SFT_DIST_TOKEN"
    r"|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|PYTHONPATH"
)


@dataclass(frozen=True)
class Live:
    """One line of squeue."""

    id: str
    state: str
    comment: str


def sbatch(options: Sequence[str], script: Path) -> str:
    """The new job's id. Raises UserError with what sbatch said."""
    output = ask(["sbatch", "--parsable", *options, str(script)])
    job = output.strip().split(";")[0]
    if not job.isdecimal():
        raise UserError(f"sbatch answered {output.strip()[:200]!r} instead of a job's id")
    return job


def live_jobs() -> list[Live]:
    """All of this user's jobs that wait or run, array tasks one by one: one squeue. Raises UserError."""
    lines = ask(["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%k"]).splitlines()
    return [Live(*parts) for line in lines if len(parts := line.split("|", 2)) == 3]


def ask(argv: Sequence[str]) -> str:
    """One call of a Slurm command. Raises UserError with what it said."""
    try:
        done = subprocess.run(
            argv, env=clean_environment(os.environ), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except FileNotFoundError:
        raise UserError(f"{argv[0]} is not there: this has to run where Slurm's commands are (a login node)") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{argv[0]} did not answer in {PATIENCE_S} s; try again, nothing is sent twice") from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise UserError(said if said.startswith(argv[0]) else f"{argv[0]}: {said}")
    return done.stdout


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what an enclosing job left (SLURM_CPU_BIND pins every rank to a few cores), but with the way to Slurm."""
    return {key: value for key, value in environment.items() if key == "SLURM_CONF" or not _FOREIGN.fullmatch(key)}
