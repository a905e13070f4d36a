"""`sft-dist search`: runs a search until its budget is used up. Started again, it continues."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.planning import target_cluster
from launch.run import INTERRUPTED
from launch.search.definition import Definition, read_definition
from launch.search.lease import LOCK, lease
from launch.search.planner import Planner
from launch.search.runners import ClusterRuns, LocalRuns, Runner
from launch.search.status import describe, read_study, require_optuna, write_summary
from launch.slurm.records import jobs_of
from sft_dist.recipe.text import printable
from sft_dist.run.attempt import is_running
from sft_dist.run.folder import RunFolder
from sft_dist.run.locks import is_locked

if TYPE_CHECKING:
    from launch.search.controller import Controller
    from launch.search.study import Study

STOP = "stop"  # while it exists in the folder of a search, its controller stops


def run_search(
    recipe: str,
    overrides: Sequence[str],
    root: Path,
    cluster_name: str | None = None,
    processes: int | None = None,
    once: bool = False,
) -> int:
    """Returns the exit code: 0 when the search has ended with a finished trial, 1 without, 130 interrupted. `once`: decides a
    single time and leaves; only for a cluster, where jobs outlive this process. Raises UserError."""
    require_optuna()
    cluster = target_cluster(cluster_name)
    definition = read_definition(recipe, overrides, root)
    definition.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lease(definition.folder):
        (definition.folder / STOP).unlink(missing_ok=True)
        runner: Runner = ClusterRuns(cluster) if cluster else LocalRuns(definition.folder, processes)
        return control(definition, Planner(definition, cluster, processes), runner, once)


def control(definition: Definition, planner: Planner, runner: Runner, once: bool = False) -> int:
    """Runs the controller until the search has ended. Needs the lease."""
    from launch.search.controller import Controller  # imports optuna, which `require_optuna` has found
    from launch.search.study import Study

    study = Study.open(definition.folder, definition.space, definition.objective.maximize)
    controller = Controller(definition, study, planner, runner)
    try:
        while _cycle(controller, definition, study):
            if once:
                return 0
            if (definition.folder / STOP).exists():
                controller.stop()
                return INTERRUPTED
            runner.wait()
    except KeyboardInterrupt:
        print("stopping: the trials save, and the same command continues the search", file=sys.stderr, flush=True)
        return INTERRUPTED
    finally:
        _close(runner)
    print(printable(describe(definition, study)), flush=True)
    return 0 if any(trial.state == "finished" for trial in study.trials()) else 1


def _cycle(controller: Controller, definition: Definition, study: Study) -> bool:
    active = controller.cycle()
    write_summary(definition, study, ended=not active)
    return active


def _close(runner: Runner) -> None:
    while True:
        try:
            runner.close()
            return
        except KeyboardInterrupt:
            continue  # the terminal sent it to the trials, too, which end


def stop_search(recipe: str, overrides: Sequence[str], root: Path) -> str:
    """Asks a search to stop after its trials have saved; returns what was asked. Raises UserError."""
    definition = read_definition(recipe, overrides, root)
    active = [trial for trial in read_study(definition).trials() if trial.is_active]
    (definition.folder / STOP).touch(mode=0o600)
    folders = [definition.runs / trial.run for trial in active]
    if names := [str(folder) for folder in folders if jobs_of(folder)]:
        from launch.slurm.cancel import cancel, plan_cancellation  # searches on one machine never ask Slurm

        cancel(plan_cancellation(names, root), at_once=False)
    running = [folder for folder in map(RunFolder, folders) if is_running(folder)]
    for folder in running:
        folder.stop_file.touch(mode=0o600)
    controlled = "its controller and " if is_locked(definition.folder / LOCK) else ""
    return f"asked {controlled}{len(running)} running trials to save and stop; `sft-dist search {recipe}` continues"
