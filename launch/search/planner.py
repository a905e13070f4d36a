"""Plans single points, so that one that cannot be trained is refused before it costs anything."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launch.plan import Machine, detect_machine, plan_run
from launch.planning import PlannedRun, python_of, require_references
from launch.row_counts import RowCounts, count_rows
from launch.run_folders import folder_name, folder_numbers
from launch.search.definition import Definition
from launch.search.space import run_of
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.machine import missing_packages
from sft_dist.recipe.schema import Recipe
from sft_dist.run.attempt import LAST_STEP

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster


class Planner:
    """Plans points of a search for this machine or a cluster. Rows are counted once for each distinct data section."""

    def __init__(self, definition: Definition, cluster: Cluster | None = None, processes: int | None = None) -> None:
        self._definition, self._cluster, self._processes = definition, cluster, processes
        self._machine = Machine.node_of(cluster) if cluster else detect_machine()
        self._python = python_of(cluster)
        self._counts: dict[str, RowCounts] = {}

    def plan(self, point: Mapping[str, Any]) -> PlannedRun:
        """Plans the run of a point. Raises UserError when it cannot be trained."""
        run = run_of(self._definition.source, point)
        require_references([run], self._definition.source)
        if self._python == sys.executable and (problems := missing_packages(run.recipe)):
            raise UserError(problems)
        rows = self._rows(run.recipe)
        folder = self._definition.runs / folder_name(run.id, folder_numbers(self._definition.runs))
        plan = plan_run(run, self._machine, rows, folder, self._python, self._processes, self._cluster)
        return PlannedRun(run, plan)

    def _rows(self, recipe: Recipe) -> RowCounts:
        key = recipe.data.model_dump_json() + recipe.task.model_dump_json()
        if key not in self._counts:
            self._counts[key] = count_rows(recipe)
        rows = self._counts[key]
        if rows.splits and not rows.splits.get("validation"):
            raise UserError(Problem("a search needs validation examples", "data.split.validation"))
        return rows


def pausing_at(planned: PlannedRun, last_step: int | None) -> PlannedRun:
    """Returns the same run, ending at a step: its plan's environment says so to every rank."""
    env = {key: value for key, value in planned.plan.env.items() if key != LAST_STEP}
    if last_step is not None:
        env[LAST_STEP] = str(last_step)
    return replace(planned, plan=replace(planned.plan, env=env))
