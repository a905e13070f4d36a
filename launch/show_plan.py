"""`sft-dist plan`: everything that `run` or `submit` would do, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch.planning import PlannedRun, plan_runs, target_cluster, with_states
from launch.render import describe_plans

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster


def show_plan(
    recipe: str,
    overrides: Sequence[str],
    root: Path,
    processes: int | None,
    cluster_name: str | None,
    script_only: bool,
    diff: bool,
    as_json: bool,
) -> str:
    """Raises UserError."""
    cluster = target_cluster(cluster_name)
    runs = plan_runs(recipe, overrides, root, processes, cluster=cluster)
    if diff:
        return _diff(runs, cluster, as_json)
    if as_json:
        return json.dumps([run.plan.to_json() for run in runs], indent=2, ensure_ascii=False) + "\n"
    if cluster is not None:
        return _for_cluster(runs, cluster, script_only)
    if script_only:
        raise click.UsageError("--script prints a cluster's job script; add --cluster NAME")
    return describe_plans(with_states(runs)) + "\n"


def _diff(runs: Sequence[PlannedRun], cluster: Cluster | None, as_json: bool) -> str:
    from launch.slurm.divide import divide  # a plan for this machine does not wait for the import
    from launch.slurm.queue import read_queue
    from launch.slurm.render import describe_states, states_json

    by_state = divide(runs, read_queue() if cluster else {})
    return (json.dumps(states_json(by_state), indent=2) if as_json else describe_states(by_state)) + "\n"


def _for_cluster(runs: Sequence[PlannedRun], cluster: Cluster, script_only: bool) -> str:
    """Returns the plans, what Slurm is asked for, and the first job script."""
    from launch.slurm.render import describe_requests
    from launch.slurm.software import warn_of_missing_software
    from launch.slurm.submit import check_folders, script_of

    check_folders(runs, cluster)
    script = script_of(runs[0], cluster, warn_of_missing_software(cluster))
    if script_only:
        return script
    plans = f"{describe_plans(with_states(runs))}\n{describe_requests(runs, cluster)}\n"
    return f"{plans}\n{runs[0].plan.folder}/job.sbatch:\n\n{script}"
