"""What people read about plans and submissions on Slurm. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch.slurm.resources import format_time

if TYPE_CHECKING:
    from launch.planning import PlannedRun
    from launch.slurm.clusters import Cluster
    from launch.slurm.divide import JobPlan, RunsByState
    from launch.slurm.resources import Request
    from launch.slurm.submit import Submission


PURPOSE = {
    "score": "scores the checkpoints of each run after its training",
    "eval": "then chooses the best of all checkpoints, tests it and exports it",
}
MAX_NAMED = 10  # runs of a state


def describe_requests(runs: Sequence[PlannedRun], cluster: Cluster) -> str:
    """Returns what is requested from Slurm, a line for each different request."""
    requests = list(dict.fromkeys(run.plan.request for run in runs if run.plan.request))
    return "\n".join(f"  {'cluster':<13}{cluster.name}: {describe_request(request)}" for request in requests)


def describe_request(request: Request) -> str:
    """`2 nodes, each 2 CPUs, 7,629 MiB; at most 04:00:00`."""
    amounts = [f"{request.gpus} GPUs"] if request.gpus else []
    amounts += [f"{request.cpus} CPUs"]
    amounts += [f"{request.memory_mb:,} MiB"] if request.memory_mb else []
    nodes = "1 node," if request.nodes == 1 else f"{request.nodes} nodes, each"
    limit = f"at most {format_time(request.time_s)}" if request.time_s else "no time limit requested"
    return f"{nodes} {', '.join(amounts)}; {limit}"


def describe_states(by_state: RunsByState) -> str:
    """`plan --diff`."""
    lines = []
    for state, runs in vars(by_state).items():
        lines.append(f"{state:<8} {len(runs):>6,}")
        lines += [f"  {run.plan.name}/{run.plan.folder.name}{_point(run)}" for run in runs[:MAX_NAMED]]
        lines += [f"  and {len(runs) - MAX_NAMED:,} more"] if len(runs) > MAX_NAMED else []
    return "\n".join(lines)


def states_json(by_state: RunsByState) -> dict[str, list[str]]:
    return {state: [str(run.plan.folder) for run in runs] for state, runs in vars(by_state).items()}


def _point(run: PlannedRun) -> str:
    return "".join(f"  {key}={value}" for key, value in run.plan.point.items())


def describe_dry_run(by_state: RunsByState, jobs: Sequence[JobPlan], parallel: int | None) -> str:
    """`submit --dry-run`."""
    lines = [_counts(by_state)]
    for job in jobs:
        size = f"one array of {len(job.runs):,}" if job.is_array else "one job"
        cap = f", at most {parallel} at a time" if parallel and job.is_array else ""
        purpose = describe_request(job.request) if job.kind == "train" else PURPOSE[job.kind]
        lines.append(f"would submit {size}{cap}: {purpose}")
    return "\n".join(lines)


def describe_submission(submission: Submission, cluster: Cluster) -> str:
    lines = [_counts(submission.by_state), *(f"job {job_id}: {_purpose(job)}" for job_id, job in submission.jobs)]
    if num_calls := len(submission.jobs):
        calls = f"{num_calls} call{'s' if num_calls > 1 else ''} of sbatch"
        lines.append(f"submitted to {cluster.name} with {calls}; next: sft-dist status")
    return "\n".join(lines)


def _purpose(job: JobPlan) -> str:
    if job.kind != "train":
        return PURPOSE[job.kind]
    if job.is_array:
        return f"{len(job.runs):,} runs as an array"
    return f"{job.runs[0].plan.name}/{job.runs[0].plan.folder.name}"


def _counts(by_state: RunsByState) -> str:
    unchanged = {"finished": by_state.done, "running": by_state.running, "waiting": by_state.waiting}
    counts = [f"{len(runs):,} {state}" for state, runs in unchanged.items() if runs]
    missing = f"{len(by_state.missing):,} to submit"
    return f"{missing}; skipped: {', '.join(counts)}" if counts else missing
