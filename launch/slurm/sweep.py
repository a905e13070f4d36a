"""Submits the evaluation of existing runs to Slurm: an array that divides the checkpoints of all runs, and one job that chooses.

Every task has its share by number, so nothing depends on locks between nodes. Submitting again is safe: what has scores is not scored
again, and no second evaluation is submitted while one of these runs is in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.evaluate import find_folders, recipes_in
from launch.planning import PlannedRun, plan_run_folder
from launch.run_folders import shared_source
from launch.slurm.clusters import Cluster, load_cluster
from launch.slurm.functions import check_installed
from launch.slurm.queue import Queue, read_queue
from launch.slurm.records import jobs_of
from launch.slurm.submit import SubmissionFolder, check_folders, exclusive, recover_records, send_evaluation
from sft_dist.recipe.files import write_json
from sft_dist.recipe.trust import NO_TRUST, Trust, require_task_trust
from sft_dist.run.folder import RunFolder

MAX_TASKS = 20  # more processes would take longer to start than to score


@dataclass(frozen=True)
class SentSweep:
    """The ids of what was submitted; `scoring` is empty where the job that chooses scores the checkpoints, too."""

    scoring: str
    evaluation: str
    num_tasks: int = 0
    is_new: bool = True


def send_to_cluster(
    targets: Sequence[str],
    root: Path,
    name: str,
    processes: int | None = None,
    trust: Trust = NO_TRUST,
    averages: Sequence[str] = (),
) -> str:
    """Submits the sweep to Slurm as an array of at most `processes` tasks and a job that chooses; describes them. Raises UserError."""
    cluster = load_cluster(name)
    folders, leaderboard_in = find_folders(targets, root)
    trust |= Trust.in_recipes(recipes_in(targets))
    for folder in map(RunFolder, folders):
        require_task_trust(folder.recipe(), trust, folder.recipe_file)
    runs = [plan_run_folder(folder, cluster=cluster, trust=trust) for folder in folders]
    return describe(send_sweep(runs, cluster, leaderboard_in, processes or MAX_TASKS, averages), cluster)


def send_sweep(
    runs: Sequence[PlannedRun],
    cluster: Cluster,
    leaderboard: Path,
    max_tasks: int = MAX_TASKS,
    averages: Sequence[str] = (),
) -> SentSweep:
    """`max_tasks`: of the array; `averages`: as `parse_averaging` reads them, made by the job that chooses. Raises UserError when Slurm does not answer, or refuses."""
    check_folders(runs, cluster)
    check_installed()
    parent = runs[0].plan.folder.parent
    with exclusive(parent):
        queue = read_queue()
        recover_records(parent, queue)
        if job_id := _queued_evaluation(runs, queue):
            return SentSweep("", job_id, is_new=False)
        folders = [run.plan.folder for run in runs]
        num_tasks = min(num_without_scores(folders), cluster.max_array_size, max_tasks)
        tasks = [str(folders[index % len(folders)]) for index in range(num_tasks)]  # which record tells of which task
        parts = [{"kind": "score", "array": True, "folders": tasks}] if num_tasks > 1 else []
        parts.append({"kind": "eval", "array": False, "folders": list(map(str, folders))})
        submission = SubmissionFolder(parent, cluster, parts)
        order = {"runs": list(map(str, folders)), "leaderboard": str(leaderboard)}
        job_ids: list[str] = []

        def send(function: str, paths: Sequence[Path]) -> None:
            number, source = len(job_ids), shared_source(parent)  # a run's own source may be older than these functions
            place, comment = submission.path / "eval", submission.comment(number)
            job_ids.append(send_evaluation(function, paths, runs, source, cluster, place, comment, job_ids))
            submission.record(number, job_ids[number])

        if num_tasks > 1:
            shares = [submission.path / f"share-{index}.json" for index in range(num_tasks)]
            for index, file in enumerate(shares):
                write_json(file, {**order, "index": index, "count": num_tasks})
            send("score_share", shares)
        write_json(submission.path / "eval.json", {**order, "average": [*averages]})
        send("evaluate_runs", [submission.path / "eval.json"])
        submission.close(job_ids)
    return SentSweep(job_ids[0] if num_tasks > 1 else "", job_ids[-1], num_tasks)


def num_without_scores(folders: Sequence[Path]) -> int:
    """Returns how many checkpoints have no record of validation scores."""
    steps = [step for folder in folders for step in RunFolder(folder).checkpoints.glob("step-*")]
    return sum(not (step.parents[1] / "evaluation" / f"{step.name}.validation.json").is_file() for step in steps)


def describe(sweep: SentSweep, cluster: Cluster) -> str:
    if not sweep.is_new:
        return f"job {sweep.evaluation} already evaluates these runs; next: sft-dist status"
    tasks = f"job {sweep.scoring}: scores checkpoints, an array of {sweep.num_tasks:,} tasks\n" if sweep.scoring else ""
    return f"{tasks}job {sweep.evaluation}: chooses, tests and exports the winner\nsubmitted to {cluster.name}; next: sft-dist status"


def _queued_evaluation(runs: Sequence[PlannedRun], queue: Queue) -> str:
    """Returns the job that evaluates all of these runs, else ""."""
    jobs = [{job.id for job in jobs_of(run.plan.folder) if job.kind == "eval" and job.id in queue} for run in runs]
    return min(set.intersection(*jobs), default="")
