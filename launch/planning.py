"""From what the user typed to plans: read, expand, look at what the recipe points to, count, plan. Starts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from launch.expand import MOST_PROBLEMS, Run, expand, locate
from launch.plan import Machine, Plan, detect_machine, plan_run
from launch.row_counts import Rows, rows_of
from launch.run_folders import folder_name, newest
from launch.run_state import all_runs, state_of
from sft_dist.recipe.checks import cross_checks
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json
from sft_dist.recipe.load import read
from sft_dist.recipe.machine import missing_packages
from sft_dist.recipe.references import check_references
from sft_dist.recipe.schema import Recipe, Train
from sft_dist.recipe.source import Source
from sft_dist.recipe.strategies import STRATEGIES
from sft_dist.recipe.suggest import similar_to
from sft_dist.run.folder import RunFolder

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster


@dataclass(frozen=True)
class Prepared:
    """A run, ready to be sealed."""

    run: Run
    plan: Plan


def prepare(
    target: str,
    overrides: Sequence[str],
    root: Path,
    processes: int | None = None,
    fresh: bool = False,
    cluster: Cluster | None = None,
) -> list[Prepared]:
    """All runs of a recipe (or the one run of a run folder), planned for this machine or a cluster. Raises UserError."""
    if (Path(target) / "recipe.json").is_file():
        if overrides:
            raise UserError(f"{target} is sealed; KEY=VALUE needs the recipe file, and makes another run")
        return [prepare_folder(Path(target).resolve(), processes, cluster=cluster)]
    source = read(target, overrides)
    runs = expand(source)
    require_references(runs, source)
    parent = root / runs[0].recipe.name
    taken = _capsules(parent)
    machine = Machine.node_of(cluster) if cluster else detect_machine()
    python = python_of(cluster)
    count = _counter()
    prepared: list[Prepared] = []
    problems: dict[tuple[str, str, str], Problem] = {}
    if python == sys.executable:  # another Python's packages are not known here; the run itself looks again
        _check_packages(runs, source)
    for run in runs:
        rows = count(run)
        folder = parent / folder_name(run.id, taken, fresh)
        try:
            prepared.append(Prepared(run, plan_run(run, machine, rows, folder, python, processes, cluster)))
        except UserError as error:
            for problem in error.problems:
                found = locate(problem, source, run.places)
                problems[(found.path, found.message, str(found.mark))] = found
    if problems:
        raise UserError(list(problems.values())[:MOST_PROBLEMS])
    return prepared


def python_of(cluster: Cluster | None) -> str:
    """The interpreter that trains: this one, or the cluster's own."""
    if cluster is None:
        return sys.executable
    if cluster.venv:
        return f"{cluster.venv}/bin/python"
    return "python3" if cluster.container else "python" if cluster.conda else sys.executable


def prepare_folder(
    path: Path,
    processes: int | None = None,
    strategy: str | None = None,
    machine: Machine | None = None,
    cluster: Cluster | None = None,
) -> Prepared:
    """A sealed run, planned anew: this machine may have other processes than the one it was sealed on, and they may share
    the work in another way. Raises UserError."""
    folder = RunFolder(path)
    recipe = folder.recipe()
    known = read_json(folder.plan_file) or {}
    run = Run(path.name, recipe, known.get("point") or {})
    counted = known.get("rows") or {}
    rows = Rows(**counted) if counted.get("splits") else rows_of(recipe)
    here = Machine.node_of(cluster) if cluster else machine or detect_machine()
    planned = replace(run, recipe=with_strategy(recipe, strategy)) if strategy else run
    plan = plan_run(planned, here, rows, path, python_of(cluster), processes, cluster)
    return Prepared(run, plan)


def with_strategy(recipe: Recipe, name: str) -> Recipe:
    """The same training, shared out in another way. Raises UserError when the recipe does not go with it."""
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


def with_states(prepared: Sequence[Prepared]) -> list[tuple[Plan, str]]:
    """Each plan with what its folder says about it: new, or the run's state."""
    known: set[Path] = set()
    if prepared:
        parent = prepared[0].plan.folder.parent
        known = {parent / name for name in os.listdir(parent)} if parent.is_dir() else set()
    folders = [one.plan.folder for one in prepared]
    return [
        (one.plan, state_of(folder).state if folder in known and (folder / "recipe.json").is_file() else "new")
        for one, folder in zip(prepared, folders, strict=True)
    ]


def folders_of(target: str, overrides: Sequence[str], root: Path) -> list[Path]:
    """The existing run folders a recipe or a folder stands for, newest capsule of each run."""
    if Path(target).is_dir():
        return [path.resolve() for path in all_runs(Path(target))]
    runs = expand(read(target, overrides))
    parent = root / runs[0].recipe.name
    taken = _capsules(parent)
    folders = [parent / folder_name(run.id, taken) for run in runs]
    return [folder for folder in folders if folder.is_dir()]


def _capsules(parent: Path) -> dict[str, int]:
    return newest(os.listdir(parent)) if parent.is_dir() else {}


def require_references(runs: Sequence[Run], source: Source) -> None:
    """Does what the recipe points to exist? Once for each distinct model and data section."""
    problems: dict[tuple[str, str], Problem] = {}
    for run in _distinct(runs, lambda run: (id(run.recipe.model), id(run.recipe.data))):
        for problem in check_references(run.recipe):
            found = locate(problem, source, run.places)
            problems[(found.path, found.message)] = found
    if problems:
        raise UserError(list(problems.values())[:MOST_PROBLEMS])


def _check_packages(runs: Sequence[Run], source: Source) -> None:
    problems = {}
    for run in runs:
        for problem in missing_packages(run.recipe):
            found = locate(problem, source, run.places)
            problems[(found.path, found.message)] = found
    if problems:
        raise UserError(list(problems.values())[:MOST_PROBLEMS])


def _counter() -> Callable[[Run], Rows]:
    """Rows of a run; runs that share their data and task sections (the same objects) share the answer."""
    known: dict[tuple[int, int], Rows] = {}

    def count(run: Run) -> Rows:
        key = (id(run.recipe.data), id(run.recipe.task))
        if key not in known:
            known[key] = rows_of(run.recipe)
        return known[key]

    return count


def _distinct(runs: Sequence[Run], key: Callable[[Run], tuple[int, int]]) -> Iterator[Run]:
    seen = set()
    for run in runs:
        if (found := key(run)) not in seen:
            seen.add(found)
            yield run
