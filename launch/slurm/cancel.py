"""Cancels runs on the cluster: pending jobs are removed, running ones save first."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.run_folders import all_run_folders, find_runs
from launch.slurm.client import CommandRunner, run_command
from launch.slurm.queue import read_queue
from launch.slurm.records import jobs_of
from sft_dist.recipe.errors import Problem, UserError, collected
from sft_dist.recipe.files import write_text
from sft_dist.run.folder import RunFolder
from sft_dist.run.requeue_policy import cancelled_jobs

MAX_IDS = 500  # in one scancel


@dataclass(frozen=True)
class Cancellation:
    """Jobs to cancel, by state."""

    folders: dict[Path, list[str]]  # run folder -> its training jobs
    pending: tuple[str, ...]
    running: tuple[str, ...]
    evaluations: tuple[str, ...]

    @property
    def num_jobs(self) -> int:
        return len(self.pending) + len(self.running) + len(self.evaluations)


def plan_cancellation(targets: Sequence[str], root: Path, run: CommandRunner = run_command) -> Cancellation:
    """Targets: recipes, folders, ids, and patterns such as `my-sweep/0a*`. Raises UserError."""
    folders = _find_folders(targets, root)
    queue = read_queue(run)
    trainings, evaluations = [], set()
    jobs_by_folder: dict[Path, list[str]] = {}
    for folder in folders:
        queued = [record for record in jobs_of(folder) if record.id in queue]
        training_ids = [record.id for record in queued if record.kind == "train"]
        trainings += training_ids
        evaluations |= {record.id for record in queued if record.kind != "train"}
        if queued:
            jobs_by_folder[folder] = training_ids
    return Cancellation(
        jobs_by_folder,
        pending=tuple(job_id for job_id in trainings if queue[job_id].is_pending),
        running=tuple(job_id for job_id in trainings if not queue[job_id].is_pending),
        evaluations=tuple(sorted(evaluations - _evaluations_of_others(folders))),
    )


def _evaluations_of_others(folders: Sequence[Path]) -> set[str]:
    """Evaluations that runs beside these wait for, too; they are not cancelled."""
    parents = {folder.parent for folder in folders}
    others_folders = [path for parent in parents for path in all_run_folders(parent) if path not in folders]
    return {record.id for path in others_folders for record in jobs_of(path) if record.kind != "train"}


def cancel(cancellation: Cancellation, at_once: bool, run: CommandRunner = run_command) -> None:
    """Removes pending jobs, and asks running ones to save first; `at_once` ends them without. Raises UserError with what
    Slurm refused, after everything has been tried."""
    for folder, job_ids in cancellation.folders.items():  # or they would requeue themselves
        earlier = cancelled_jobs(RunFolder(folder))
        write_text(RunFolder(folder).cancel_file, "".join(f"{job_id}\n" for job_id in [*earlier, *job_ids]))
    removed = [*cancellation.pending, *cancellation.evaluations, *(cancellation.running if at_once else ())]
    calls = [["scancel", *chunk] for chunk in _chunks(removed)]
    if not at_once:
        calls += [["scancel", "--batch", "--signal=USR1", *chunk] for chunk in _chunks(cancellation.running)]
    refusals: list[Problem] = []
    for argv in calls:  # all of them: one id that Slurm refuses must not keep the others running
        with collected(refusals):
            run(argv)
    if refusals:
        raise UserError(refusals)


def _chunks(job_ids: Sequence[str]) -> list[Sequence[str]]:
    return [job_ids[start : start + MAX_IDS] for start in range(0, len(job_ids), MAX_IDS)]


def _find_folders(targets: Sequence[str], root: Path) -> list[Path]:
    folders: dict[Path, None] = {}
    for target in targets:
        if re.search(r"[*?\[]", target) and not Path(target).exists():
            runs = all_run_folders(root)
            matches = [path for path in runs if _matches(path, target)]
            if not matches:
                raise UserError(f"no run matches {target!r}; {len(runs)} runs are in {root}")
            folders |= dict.fromkeys(path.resolve() for path in matches)
        else:
            folders |= dict.fromkeys(find_runs(target, root))
    return list(folders)


def _matches(path: Path, pattern: str) -> bool:
    return any(
        fnmatch.fnmatchcase(name, pattern) for name in (path.name, path.parent.name, f"{path.parent.name}/{path.name}")
    )
