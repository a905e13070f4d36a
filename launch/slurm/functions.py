"""Python functions of a path as Slurm jobs: the evaluation sweep.

submitit renders, sends and restarts these jobs, one task per path. Training has a script of its own (`job.py`): several
nodes, signals and requeue rules are more than a function call. The state of a job is read from squeue and sacct by its id,
as for training; submitit's own polling is not used.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.slurm.client import clean_environment
from launch.slurm.job import CLEAN, contained, directive, exports, sbatch_options, software
from sft_dist.recipe.errors import UserError
from sft_dist.run.remote_call import Call

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster
    from launch.slurm.resources import Request

MAX_TIMEOUTS = 10  # a function that ten time limits were not enough for is not started again


@dataclass(frozen=True)
class Work:
    """A function of one path, and the environment it runs in."""

    name: str
    function: str  # "sft_dist.evaluate:score_run"
    paths: Sequence[Path]  # one task for each
    source: Path  # of a run: contains the sealed sft_dist
    python: str
    env: Mapping[str, str]


def check_installed() -> None:
    """Raises UserError where submitit is missing."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError("evaluating on Slurm needs submitit: pip install 'sft-dist[slurm]'")


def send(
    work: Work,
    request: Request,
    cluster: Cluster,
    folder: Path,
    after: Sequence[str] = (),
    comment: str = "",
    parallel: int | None = None,
) -> str:
    """Submits the calls; returns the new job's id, an array's when there are several paths. `folder` takes script, pickles
    and output; the job waits until the jobs `after` have ended, successfully or not. Raises UserError with the message of
    sbatch."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    calls = [Call(work.function, str(path)) for path in work.paths]
    with _clean_process_environment():
        try:
            executor = SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS, python=python_command(work, cluster))
            executor.update_parameters(**parameters(work, request, cluster, after, comment, parallel))
            with redirect_stderr(io.StringIO()):  # the error contains it, too
                jobs = executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"sbatch: {str(error).removeprefix('sbatch: ')}") from None
    return str(jobs[0].job_id).split("_")[0]


def parameters(
    work: Work, request: Request, cluster: Cluster, after: Sequence[str], comment: str, parallel: int | None
) -> dict[str, Any]:
    """Returns SlurmExecutor's parameters. Pure. The options are those of training jobs, so that all of a cluster's settings
    hold."""
    header: dict[str, Any] = sbatch_options(request, cluster, work.name)
    del header["open-mode"]  # submitit writes it
    header |= {"comment": comment} if comment else {}
    header |= {"dependency": f"afterany:{':'.join(after)}"} if after else {}
    for option, value in header.items():
        directive(option, value)  # raises when it is not safe in a header, as for training jobs
    return {
        "time": math.ceil(request.time_s / 60) if request.time_s else None,
        "signal_delay_s": cluster.signal_lead_s,
        "array_parallelism": parallel or len(work.paths),
        "stderr_to_stdout": True,
        "wckey": None,  # submitit sets one by default, which not every cluster accepts
        "setup": _setup(work, cluster),
        "srun_args": _srun_arguments(work, cluster),
        "additional_parameters": {key.replace("-", "_"): value for key, value in header.items()},
    }


def python_command(work: Work, cluster: Cluster) -> str:
    """Returns the command of Python, quoted for the shell, which submitit leaves to its caller."""
    return contained(cluster, shlex.quote(work.python))


def _setup(work: Work, cluster: Cluster) -> list[str]:
    """Returns the lines of the script before srun. submitit writes them as they are."""
    return [
        CLEAN,
        *exports(cluster, work.env),
        f"export RUN={shlex.quote(str(work.source.parent))}",
        f"export PYTHONPATH={shlex.quote(str(work.source))}",
        "umask 077",
        *software(cluster, "exit 1"),
        f"cd {shlex.quote(str(work.source))} || exit 1  # `python -m` looks here first",
        "[[ ${SLURM_CPUS_PER_TASK-} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
    ]


def _srun_arguments(work: Work, cluster: Cluster) -> list[str]:
    """Pyxis is a plug-in of srun."""
    if not cluster.container or cluster.container.runtime != "pyxis":
        return []
    runs = work.source.parent.parent
    mounts = ",".join([f"{runs}:{runs}", *cluster.container.mounts])
    return [f"--container-image={cluster.container.image}", f"--container-mounts={mounts}"]


@contextmanager
def _clean_process_environment() -> Iterator[None]:
    """Removes Slurm's variables within it, because submitit calls sbatch with this process's environment."""
    before = dict(os.environ)
    for name in before.keys() - clean_environment(before).keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)
