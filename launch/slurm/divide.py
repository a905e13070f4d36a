"""Which runs of a recipe have to be submitted, and in which jobs. Runs that have finished, or that have a job in the queue,
are left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from launch.evaluate import all_evaluated, leaderboard_folder
from launch.planning import PlannedRun
from launch.run_state import state_of
from launch.slurm.clusters import Cluster
from launch.slurm.queue import Queue
from launch.slurm.records import jobs_of
from launch.slurm.resources import Request


@dataclass(frozen=True)
class RunsByState:
    """A recipe's runs, by what a submission has to do about them."""

    missing: list[PlannedRun] = field(default_factory=list)
    waiting: list[PlannedRun] = field(default_factory=list)
    running: list[PlannedRun] = field(default_factory=list)
    done: list[PlannedRun] = field(default_factory=list)


@dataclass(frozen=True)
class JobPlan:
    """Runs that are submitted by one call of sbatch."""

    runs: list[PlannedRun]
    kind: str = "train"  # as in JobRecord
    is_array: bool = False

    @property
    def request(self) -> Request:
        """What a training job requests; all runs of one job request the same."""
        request = self.runs[0].plan.request
        assert request is not None
        return request


def divide(runs: Sequence[PlannedRun], queue: Queue) -> RunsByState:
    """`queue`: the user's jobs, or empty without Slurm."""
    by_state = RunsByState()
    for run in runs:
        _members(by_state, run, queue).append(run)
    return by_state


def _members(by_state: RunsByState, run: PlannedRun, queue: Queue) -> list[PlannedRun]:
    folder = run.plan.folder
    if not (folder / "recipe.json").is_file():
        return by_state.missing
    state = state_of(folder).state
    jobs = [queue[record.id] for record in jobs_of(folder) if record.kind == "train" and record.id in queue]
    if state == "finished":
        return by_state.done
    if state == "running" or not all(job.is_pending for job in jobs):
        return by_state.running
    return by_state.waiting if jobs else by_state.missing


def plan_jobs(
    runs: Sequence[PlannedRun], by_state: RunsByState, queue: Queue, cluster: Cluster, evaluate: bool
) -> list[JobPlan]:
    """Returns what has to be submitted, in as few calls of sbatch as possible: trainings grouped by their request, then
    their evaluation. No array is longer than the cluster allows."""
    longest = cluster.max_array_size
    groups: dict[Request | None, list[PlannedRun]] = {}
    for run in by_state.missing:
        groups.setdefault(run.plan.request, []).append(run)
    jobs = [JobPlan(chunk, "train", len(chunk) > 1) for group in groups.values() for chunk in _chunks(group, longest)]
    if evaluate and _needs_evaluation(runs, by_state, queue):
        if len(runs) > 1:
            jobs += [JobPlan(chunk, "score", len(chunk) > 1) for chunk in _chunks(runs, longest)]
        jobs.append(JobPlan(list(runs), "eval"))
    return jobs


def _chunks(runs: Sequence[PlannedRun], size: int) -> list[list[PlannedRun]]:
    return [list(runs[start : start + size]) for start in range(0, len(runs), size)]


def _needs_evaluation(runs: Sequence[PlannedRun], by_state: RunsByState, queue: Queue) -> bool:
    """Whether there is, or will be, a checkpoint that no evaluation in the queue and no leaderboard covers."""
    if by_state.missing:
        return True
    evaluations = [{job.id for job in jobs_of(run.plan.folder) if job.kind == "eval"} & queue.keys() for run in runs]
    if set.intersection(*evaluations):
        return False
    plans = [run.plan for run in runs]
    return bool(by_state.waiting or by_state.running) or not all_evaluated(
        [plan.folder for plan in plans], leaderboard_folder(plans)
    )
