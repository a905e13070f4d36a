"""`sft-dist submit`: checks the data, and hands the runs to Slurm, or with `--cluster local` to this machine."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch.planning import PlannedRun, plan_runs, target_cluster, with_states

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster


def submit_recipe(
    recipe: str,
    overrides: Sequence[str],
    root: Path,
    cluster_name: str | None,
    processes: int | None,
    max_parallel: int | None,
    allow: Collection[str],
    *,
    fresh: bool,
    evaluate: bool,
    check: bool,
    dry_run: bool,
) -> int:
    """Returns the exit code. Raises UserError."""
    if not cluster_name:
        from launch.slurm.clusters import known_clusters

        raise click.UsageError(f"--cluster NAME is missing; valid: local, {', '.join(known_clusters())}")
    cluster = target_cluster(cluster_name)
    runs = plan_runs(recipe, overrides, root, processes, fresh, cluster=cluster)
    if check and not dry_run:
        from launch.check import check_before_submit  # slow to import, and may be switched off

        for warning in check_before_submit(runs, allow):
            print(f"warning: {warning}", file=sys.stderr)
    if cluster is None:
        return _run_here(runs, evaluate, dry_run)
    print(_submit(runs, cluster, max_parallel, evaluate, dry_run))
    return 0


def _submit(
    runs: Sequence[PlannedRun], cluster: Cluster, max_parallel: int | None, evaluate: bool, dry_run: bool
) -> str:
    from launch.slurm.divide import divide, plan_jobs
    from launch.slurm.queue import read_queue
    from launch.slurm.render import describe_dry_run, describe_submission
    from launch.slurm.software import warn_of_missing_software
    from launch.slurm.submit import submit

    lacks_software = warn_of_missing_software(cluster)
    if not dry_run:
        return describe_submission(submit(runs, cluster, max_parallel, evaluate, lacks_software), cluster)
    queue = read_queue()
    by_state = divide(runs, queue)
    return describe_dry_run(by_state, plan_jobs(runs, by_state, queue, cluster, evaluate), max_parallel)


def _run_here(runs: Sequence[PlannedRun], evaluate: bool, dry_run: bool) -> int:
    """Runs the same plans on this machine and evaluates their checkpoints."""
    from launch.evaluate import all_evaluated, leaderboard_folder, run_sweep
    from launch.local.runner import LocalRunner
    from launch.render import describe_plans
    from launch.run import INTERRUPTED, run_all
    from sft_dist.recipe.trust import Trust
    from sft_dist.run.folder import RunFolder

    if dry_run:
        print(describe_plans(with_states(runs)))
        return 0
    code = run_all(runs, LocalRunner())
    saved = [run.plan.folder for run in runs if any(RunFolder(run.plan.folder).checkpoints.glob("step-*"))]
    leaderboard = leaderboard_folder([run.plan for run in runs])
    if not evaluate or code == INTERRUPTED or not saved or all_evaluated(saved, leaderboard):
        return code
    trust = Trust.in_recipes(run.run.recipe for run in runs)
    return run_sweep(saved, leaderboard, force=False, trust=trust) or code
