"""Makes plans of a recipe: reads it, expands it, checks that what it refers to exists, counts rows, plans. Starts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from launch.expand import MAX_PROBLEMS, Run, expand, locate
from launch.plan import Machine, Plan, detect_machine, plan_run
from launch.row_counts import RowCounts, count_rows
from launch.run_folders import find_sealed, folder_name, folder_numbers
from launch.run_state import state_of
from sft_dist.recipe.checks import cross_checks
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json
from sft_dist.recipe.lm_eval import unknown_tasks
from sft_dist.recipe.load import changes_of_base, read
from sft_dist.recipe.machine import missing_packages
from sft_dist.recipe.model_folder import unusable_targets
from sft_dist.recipe.references import check_references
from sft_dist.recipe.schema import Recipe, Train
from sft_dist.recipe.source import Source
from sft_dist.recipe.strategies import STRATEGIES
from sft_dist.recipe.suggest import similar_to
from sft_dist.recipe.tied_embeddings import unmergeable_targets
from sft_dist.recipe.trust import NO_TRUST, Trust, require_trust
from sft_dist.run.folder import RunFolder
from sft_dist.run.manifest import TRAINING, require_unchanged

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster


@dataclass(frozen=True)
class PlannedRun:
    """A run with its plan; the next step is its run folder."""

    run: Run
    plan: Plan


def target_cluster(name: str | None) -> Cluster | None:
    """Returns the cluster of a `--cluster` option, or None for this machine. Raises UserError."""
    if name in (None, "", "local"):
        return None
    from launch.slurm.clusters import load_cluster  # a plan for this machine does not wait for the import

    return load_cluster(str(name))


def plan_runs(
    target: str,
    overrides: Sequence[str],
    root: Path,
    processes: int | None = None,
    fresh: bool = False,
    cluster: Cluster | None = None,
) -> list[PlannedRun]:
    """Plans all runs of a recipe (or the one run of a run folder or an id), for this machine or a cluster. Raises UserError."""
    if path := find_sealed(target, root, overrides):
        return [plan_run_folder(path, processes, cluster=cluster)]
    source = read(target, overrides)
    runs = expand(source)
    require_references(runs, source)
    parent = root / runs[0].recipe.name
    numbers = folder_numbers(parent)
    machine = Machine.node_of(cluster) if cluster else detect_machine()
    python = python_of(cluster)
    if python == sys.executable:  # another Python's packages are not known here; the run itself checks again
        _raise_located(runs, source, missing_packages)
        _raise_located(runs, source, unknown_tasks)
    counts: dict[tuple[int, int], RowCounts] = {}
    planned: list[PlannedRun] = []
    problems = _LocatedProblems(source)
    base = {"name": source.base.name, "changes": changes_of_base(source)} if source.base else None
    for run in runs:
        try:
            rows = _count_once(run, counts)
        except UserError as error:  # the other runs read the same data
            problems.add(run, error.problems)
            problems.raise_any()
        folder = parent / folder_name(run.id, numbers, fresh)
        try:
            plan = plan_run(run, machine, rows, folder, python, processes, cluster)
            planned.append(PlannedRun(run, replace(plan, base=base) if base else plan))
        except UserError as error:
            problems.add(run, error.problems)
    problems.raise_any()
    return planned


def python_of(cluster: Cluster | None) -> str:
    """Returns the interpreter that trains: this one, or the cluster's own."""
    if cluster is None:
        return sys.executable
    if cluster.venv:
        return f"{cluster.venv}/bin/python"
    return "python3" if cluster.container else "python" if cluster.conda else sys.executable


def plan_run_folder(
    path: Path,
    processes: int | None = None,
    strategy: str | None = None,
    machine: Machine | None = None,
    cluster: Cluster | None = None,
    trust: Trust = NO_TRUST,
    target: Path | None = None,
) -> PlannedRun:
    """Plans a run folder again: this machine may run other processes than the first plan's, and with another strategy. `target`:
    another folder, to train the same there. Raises UserError, also where its recipe needs more than `trust`."""
    folder = RunFolder(path)
    recipe = folder.recipe()
    require_unchanged(path, TRAINING)
    require_trust(recipe, trust, folder.recipe_file)
    old_plan = read_json(folder.plan_file) or {}
    run = Run(path.name, recipe, old_plan.get("point") or {})
    counts = old_plan.get("rows") or {}
    rows = RowCounts(**counts) if counts.get("splits") else count_rows(recipe)
    machine = Machine.node_of(cluster) if cluster else machine or detect_machine()
    replanned = replace(run, recipe=with_strategy(recipe, strategy)) if strategy else run
    plan = plan_run(replanned, machine, rows, target or path, python_of(cluster), processes, cluster)
    return PlannedRun(run, replace(plan, base=old_plan.get("base")))


def with_strategy(recipe: Recipe, name: str) -> Recipe:
    """Returns the same training with another strategy. Raises UserError when the recipe cannot be combined with it."""
    try:
        train = Train.model_validate({**dict(recipe.train), "strategy": name})
    except ValidationError:
        valid = tuple(STRATEGIES)
        raise UserError(
            Problem("no such strategy", "--strategy", value=name, valid=valid, hint=similar_to(name, valid))
        ) from None
    changed = recipe.model_copy(update={"train": train})
    if problems := [*cross_checks(changed), *missing_packages(changed)]:
        raise UserError(problems)
    return changed


def with_states(runs: Sequence[PlannedRun]) -> list[tuple[Plan, str]]:
    """Returns each plan with the state of its folder: `new`, or the run's state."""
    folders: set[Path] = set()
    if runs:
        parent = runs[0].plan.folder.parent
        folders = {parent / name for name in os.listdir(parent)} if parent.is_dir() else set()
    return [(run.plan, _folder_state(run.plan.folder) if run.plan.folder in folders else "new") for run in runs]


def _folder_state(folder: Path) -> str:
    return state_of(folder).state if (folder / "recipe.json").is_file() else "new"


def require_references(runs: Sequence[Run], source: Source) -> None:
    """Checks, once for each distinct model and data section, that what it refers to exists, and that the export can hold what is
    trained. Raises UserError."""
    distinct: dict[tuple[int, int], Run] = {}
    for run in runs:
        distinct.setdefault((id(run.recipe.model), id(run.recipe.data)), run)
    _raise_located(list(distinct.values()), source, check_references)
    _raise_located(runs, source, lambda recipe: [*unmergeable_targets(recipe), *unusable_targets(recipe)])


def _count_once(run: Run, counts: dict[tuple[int, int], RowCounts]) -> RowCounts:
    """Counts rows; runs that share their data and task sections (the same objects) share the answer."""
    key = (id(run.recipe.data), id(run.recipe.task))
    if key not in counts:
        counts[key] = count_rows(run.recipe)
    return counts[key]


def _raise_located(runs: Sequence[Run], source: Source, check: Callable[[Recipe], Iterable[Problem]]) -> None:
    problems = _LocatedProblems(source)
    for run in runs:
        problems.add(run, check(run.recipe))
    problems.raise_any()


class _LocatedProblems:
    """Problems of the runs of one recipe, each with its position in the file; runs that share a problem report it once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._problems: dict[tuple[str, str, str], Problem] = {}

    def add(self, run: Run, problems: Iterable[Problem]) -> None:
        for problem in problems:
            located = locate(problem, self._source, run.origins)
            self._problems[(located.path, located.message, str(located.mark))] = located

    def raise_any(self) -> None:
        if self._problems:
            raise UserError(list(self._problems.values())[:MAX_PROBLEMS])
