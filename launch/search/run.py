"""`sft-dist search`: runs a search until its budget is used up. Started again, it continues."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.planning import target_cluster
from launch.run import INTERRUPTED
from launch.search.definition import Definition, read_definition
from launch.search.lease import lease
from launch.search.planner import Planner
from launch.search.runners import ClusterRuns, LocalRuns, Runner
from sft_dist.recipe.errors import UserError

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
        while controller.cycle():
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
    return 0 if any(trial.state == "finished" for trial in study.trials()) else 1


def _close(runner: Runner) -> None:
    while True:
        try:
            runner.close()
            return
        except KeyboardInterrupt:
            continue  # the terminal sent it to the trials, too, which end


def require_optuna() -> None:
    """Raises UserError when the extra is not installed."""
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise UserError("a search needs Optuna, which is not installed: pip install 'sft-dist[search]'")
