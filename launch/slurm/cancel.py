"""Takes runs off the cluster: waiting jobs go, running ones save first."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.run_state import all_runs, states_of
from launch.slurm.client import ask as call
from launch.slurm.queue import SQUEUE, Runner, parse_squeue
from launch.slurm.records import jobs_of
from sft_dist.recipe.errors import Problem, UserError, collected
from sft_dist.recipe.files import write_text
from sft_dist.run.folder import RunFolder
from sft_dist.run.requeue_policy import cancelled_jobs

AT_ONCE = 500  # job ids in one scancel


@dataclass(frozen=True)
class Cancellation:
    """Jobs that would be cancelled, by what has to be done."""

    folders: dict[Path, list[str]]  # with their jobs
    waiting: tuple[str, ...]
    running: tuple[str, ...]
    judges: tuple[str, ...]

    @property
    def jobs(self) -> int:
        return len(self.waiting) + len(self.running) + len(self.judges)


def to_cancel(targets: Sequence[str], root: Path, run: Runner = call) -> Cancellation:
    """Targets: recipes, folders, ids, and patterns such as `my-sweep/0a*`. Raises UserError."""
    folders = _folders(targets, root)
    jobs = parse_squeue(run([*SQUEUE, f"--user={os.getuid()}"]))
    trains, judges = [], set()
    hit: dict[Path, list[str]] = {}
    for folder in folders:
        live = [record for record in jobs_of(folder) if record.id in jobs]
        trains += [record.id for record in live if record.kind == "train"]
        judges |= {record.id for record in live if record.kind != "train"}
        if live:
            hit[folder] = [record.id for record in live if record.kind == "train"]
    # An evaluation that other runs wait for, too, is not ours to cancel.
    others = [
        path for parent in {folder.parent for folder in folders} for path in all_runs(parent) if path not in folders
    ]
    shared = {record.id for path in others for record in jobs_of(path) if record.kind != "train"}
    running = [name for name in trains if jobs[name].state != "PENDING"]
    waiting = [name for name in trains if jobs[name].state == "PENDING"]
    return Cancellation(hit, tuple(waiting), tuple(running), tuple(sorted(judges - shared)))


def cancel(plan: Cancellation, at_once: bool, run: Runner = call) -> None:
    """Waiting jobs go. Running ones are asked to save first; `at_once` ends them without. Raises UserError with what
    Slurm refused, after everything has been tried."""
    for folder, names in plan.folders.items():  # or they would put themselves in the queue again
        known = cancelled_jobs(RunFolder(folder))
        write_text(RunFolder(folder).cancel_file, "".join(f"{name}\n" for name in [*known, *names]))
    doomed = [*plan.waiting, *plan.judges, *(plan.running if at_once else ())]
    calls = [["scancel", *doomed[start : start + AT_ONCE]] for start in range(0, len(doomed), AT_ONCE)]
    if not at_once:
        warn = ["scancel", "--batch", "--signal=USR1"]
        calls += [[*warn, *plan.running[start : start + AT_ONCE]] for start in range(0, len(plan.running), AT_ONCE)]
    refused: list[Problem] = []
    for argv in calls:  # all of them: one id that Slurm refuses must not save the others
        with collected(refused):
            run(argv)
    if refused:
        raise UserError(refused)


def _folders(targets: Sequence[str], root: Path) -> list[Path]:
    found: dict[Path, None] = {}
    for target in targets:
        if re.search(r"[*?\[]", target) and not Path(target).exists():
            known = all_runs(root)
            names = [path for path in known if _fits(path, target)]
            if not names:
                raise UserError(f"no run fits {target!r}; {len(known)} runs are in {root}")
            found |= dict.fromkeys(path.resolve() for path in names)
        else:
            found |= dict.fromkeys(Path(state.folder).resolve() for state in states_of([target], str(root)))
    return list(found)


def _fits(path: Path, pattern: str) -> bool:
    return any(
        fnmatch.fnmatchcase(name, pattern) for name in (path.name, path.parent.name, f"{path.parent.name}/{path.name}")
    )
