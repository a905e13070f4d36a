"""The state of a run, derived from its folder alone: progress, attempts, and why it ended.

Exit codes prove nothing: `accelerate launch` turns every failure into 1, and gloo sometimes aborts after all work is done.
So the ranks' own files decide, and the kernel's locks say what is alive.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.run_folders import all_run_folders, find_runs, runs_root
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import irregular, read_json
from sft_dist.run.attempt import is_running
from sft_dist.run.folder import AttemptFolder, RunFolder
from sft_dist.run.manifest import RECIPE, SCRIPTS, TRAINING, changed_files, source_digest
from sft_dist.run.varying import varying_between

# What a run can be in. With Slurm asked, also pending and ending.
STATES = ("sealed", "pending", "running", "ending", "finished", "stopped", "failed", "killed", "unreadable")
TAIL_BYTES = 64 * 1024  # of metrics.jsonl; the newest train and validation lines are in it


@dataclass(frozen=True)
class RunState:
    """The state of one run; `state` is one of STATES."""

    name: str
    id: str
    folder: str
    state: str
    step: int
    total_steps: int | None
    loss: float | None
    eta_s: float | None
    validation: dict[str, Any] | None
    attempts: int
    cause: str
    user_error: bool = False
    job: str = ""  # its Slurm job, if Slurm was asked
    best_score: float | None = None  # on validation while training, by the metric that selects; None before it is saved
    best_step: int | None = None
    changed: tuple[str, ...] = ()  # files that were edited since the run was made; read by `states_of` alone
    point: dict[str, Any] = field(default_factory=dict)  # settings in which it differs from the runs beside it

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def state_of(path: Path) -> RunState:
    """Derives the state. Raises UserError when the folder is not a run folder."""
    folder = RunFolder(path)
    if not folder.recipe_file.is_file():
        raise UserError(f"{path} is not a run folder: it has no recipe.json")
    attempts = folder.all_attempts()
    state, cause, user_error = _outcome(folder, attempts)
    train, validation = _newest_scores(folder.metrics_file)
    start = (attempts and read_json(attempts[-1].start_file)) or {}
    outcome = (attempts and read_json(attempts[-1].outcome_file)) or {}
    return RunState(
        name=path.resolve().parent.name,
        id=path.name,
        folder=str(path),
        state=state,
        step=int(outcome.get("last_step") or train.get("step") or start.get("first_step") or 0),
        total_steps=_number(train.get("total_steps")) or _number(start.get("total_steps")) or _planned_steps(folder),
        loss=_number(train.get("loss")),
        eta_s=_number(train.get("eta_s")) if state == "running" else None,
        validation=validation or None,
        attempts=len(attempts),
        cause=cause,
        user_error=user_error,
        **_best(folder),
    )


def _planned_steps(folder: RunFolder) -> int | None:
    """Returns what the plan says before the ranks have loaded."""
    steps = (read_json(folder.plan_file) or {}).get("steps")
    return _number(steps.get("total")) if isinstance(steps, dict) else None


def _best(folder: RunFolder) -> dict[str, Any]:
    """Returns best score and its step, from the newest checkpoint: every validated step is saved."""
    newest = max(folder.checkpoints.glob("step-*"), default=None)
    progress = ((newest and read_json(newest / "trainer.json")) or {}).get("progress") or {}
    return {key: _number(progress.get(key)) for key in ("best_score", "best_step")}


def _number(value: Any) -> Any:
    """Returns a number as it is, None for all else."""
    return value if isinstance(value, int | float) else None


def _outcome(folder: RunFolder, attempts: list[AttemptFolder]) -> tuple[str, str, bool]:
    """Returns (state, cause, whether the user can fix it). A run that finished once stays finished."""
    if is_running(folder):
        return "running", "", False
    outcomes = [read_json(attempt.outcome_file) or {} for attempt in attempts]
    for outcome in reversed(outcomes):
        if outcome.get("state") == "finished":
            return "finished", str(outcome.get("reason", "")), False
    if not attempts:
        return "sealed", "", False
    from sft_dist.run.causes import classify_attempt  # a plan of new runs has no attempts to classify

    end = classify_attempt(folder, attempts[-1])
    return end.state, end.line, end.user_error


def _newest_scores(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the last train line and the last validation line."""
    newest: dict[str, dict[str, Any]] = {}
    if irregular(file):
        return {}, {}
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return {}, {}
    for line in lines:
        entry = parse_line(line)
        newest[str(entry.get("kind"))] = entry
    return newest.get("train", {}), newest.get("validation", {})


def parse_line(line: bytes | str) -> dict[str, Any]:
    """Parses one line of metrics.jsonl; {} when it is incomplete (the file may be growing, or start in mid-line)."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def states_of(targets: Sequence[str], runs: str | None) -> list[RunState]:
    """Returns the states of all runs, or of those that recipes, folders and ids stand for. Raises UserError."""
    root = runs_root(runs)
    source_digest.cache_clear()
    folders = [folder for target in targets for folder in find_runs(target, root)] if targets else all_run_folders(root)
    return with_points([_state_or_reason(folder) for folder in folders])


def with_points(states: Sequence[RunState]) -> list[RunState]:
    """Returns the states with what tells each run from the runs beside it."""
    parents = dict.fromkeys(Path(state.folder).parent for state in states)
    points = {path: point for parent in parents for path, point in varying_between(all_run_folders(parent)).items()}
    return [replace(state, point=points.get(Path(state.folder), {})) for state in states]


def _state_or_reason(folder: Path) -> RunState:
    """Returns the state, also of a folder whose files hold what this program never writes: it must not hide the other runs."""
    try:
        state = state_of(folder)
        # The source of a finished run decides nothing more.
        names = (*RECIPE, "plan.json") if state.state == "finished" else (*TRAINING, *SCRIPTS)
        return replace(state, changed=tuple(changed_files(folder, names)))
    except Exception as error:
        cause = f"its files cannot be read ({type(error).__name__}: {error})"
        return RunState(
            folder.resolve().parent.name, folder.name, str(folder), "unreadable",
            step=0, total_steps=None, loss=None, eta_s=None, validation=None, attempts=0, cause=cause,
        )  # fmt: skip
