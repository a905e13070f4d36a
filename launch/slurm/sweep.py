"""Sends the evaluation of existing runs to Slurm: an array that divides the checkpoints of all runs, and one job that chooses.

Every task has its share by number, so nothing depends on locks between nodes. Sending again is safe: what has scores is not scored
again, and no second evaluation is sent while one of these runs waits or runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from launch.evaluate import find_folders, trust_in_targets
from launch.planning import PlannedRun, plan_run_folder
from launch.run_folders import shared_source
from launch.slurm.clusters import Cluster, load_cluster
from launch.slurm.functions import Work, check_installed, send
from launch.slurm.queue import Queue, read_queue
from launch.slurm.records import JobRecord, jobs_of, record_job
from launch.slurm.submit import check_folders, evaluation_request, exclusive
from sft_dist.recipe.files import write_json
from sft_dist.recipe.trust import NO_TRUST, Trust
from sft_dist.run.folder import RunFolder

MAX_TASKS = 20  # more processes would take longer to start than to score


@dataclass(frozen=True)
class SentSweep:
    """The ids of what was sent; `scoring` is empty where the job that chooses scores the checkpoints, too."""

    scoring: str
    evaluation: str
    num_tasks: int = 0
    is_new: bool = True


def send_to_cluster(
    targets: Sequence[str], root: Path, name: str, processes: int | None = None, trust: Trust = NO_TRUST
) -> str:
    """Sends the sweep to Slurm as an array of at most `processes` tasks and a job that chooses; returns what was sent. Raises
    UserError."""
    cluster = load_cluster(name)
    folders, leaderboard_in = find_folders(targets, root)
    trust |= trust_in_targets(targets)
    runs = [plan_run_folder(folder, cluster=cluster, trust=trust) for folder in folders]
    return describe(send_sweep(runs, cluster, leaderboard_in, processes or MAX_TASKS), cluster)


def send_sweep(
    runs: Sequence[PlannedRun], cluster: Cluster, leaderboard: Path, max_tasks: int = MAX_TASKS
) -> SentSweep:
    """`max_tasks`: of the array. Raises UserError when Slurm does not answer, or refuses."""
    check_folders(runs, cluster)
    check_installed()
    parent = runs[0].plan.folder.parent
    with exclusive(parent):
        if job_id := _queued_evaluation(runs, read_queue()):
            return SentSweep("", job_id, is_new=False)
        folders = [run.plan.folder for run in runs]
        num_tasks = min(num_without_scores(folders), cluster.max_array_size, max_tasks)
        name = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        folder = parent / ".submissions" / name
        folder.mkdir(mode=0o700)
        order = {"runs": list(map(str, folders)), "leaderboard": str(leaderboard)}
        scoring = ""
        if num_tasks > 1:
            shares = [folder / f"share-{index}.json" for index in range(num_tasks)]
            for index, file in enumerate(shares):
                write_json(file, {**order, "index": index, "count": num_tasks})
            scoring = _send("score_share", shares, runs, cluster, folder, ())
            for index in range(num_tasks):
                _record(runs[index % len(runs)], JobRecord(scoring, index, cluster.name, "score", _time()))
        write_json(folder / "eval.json", order)
        evaluation = _send("evaluate_runs", [folder / "eval.json"], runs, cluster, folder, [scoring] if scoring else ())
        for run in runs:
            _record(run, JobRecord(evaluation, None, cluster.name, "eval", _time()))
    return SentSweep(scoring, evaluation, num_tasks)


def num_without_scores(folders: Sequence[Path]) -> int:
    """Returns how many checkpoints have no record of validation scores."""
    steps = [step for folder in folders for step in RunFolder(folder).checkpoints.glob("step-*")]
    return sum(not (step.parents[1] / "evaluation" / f"{step.name}.validation.json").is_file() for step in steps)


def describe(sweep: SentSweep, cluster: Cluster) -> str:
    if not sweep.is_new:
        return f"job {sweep.evaluation} already evaluates these runs; next: sft-dist status"
    tasks = f"job {sweep.scoring}: scores checkpoints, an array of {sweep.num_tasks:,} tasks\n" if sweep.scoring else ""
    return f"{tasks}job {sweep.evaluation}: chooses, tests and exports the winner\nsubmitted to {cluster.name}; next: sft-dist status"


def _send(
    function: str,
    paths: Sequence[Path],
    runs: Sequence[PlannedRun],
    cluster: Cluster,
    folder: Path,
    after: Sequence[str],
) -> str:
    plan, request = runs[0].plan, evaluation_request(runs, cluster)
    env = {**plan.env, "OMP_NUM_THREADS": str(request.cpus)}
    source = shared_source(plan.folder.parent)  # a run's own source may be older than these functions
    work = Work(f"{plan.name}-eval", f"sft_dist.evaluate:{function}", paths, source, plan.argv[0], env)
    return send(work, request, cluster, folder / "eval", after, f"sft-dist:{folder.name}:{function}")


def _queued_evaluation(runs: Sequence[PlannedRun], queue: Queue) -> str:
    """Returns the job that evaluates all of these runs, else ""."""
    jobs = [{job.id for job in jobs_of(run.plan.folder) if job.kind == "eval" and job.id in queue} for run in runs]
    return min(set.intersection(*jobs), default="")


def _record(run: PlannedRun, record: JobRecord) -> None:
    record_job(RunFolder(run.plan.folder), record)


def _time() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
