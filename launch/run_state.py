"""What happened to a run, read from its folder alone: state, progress, attempts, cause of death.

Exit codes are no witness: `accelerate launch` turns every failure into 1, and gloo sometimes aborts after all work is
done. So the ranks' own files decide, and the kernel's locks say what is alive.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json
from sft_dist.run.folder import AttemptFolder, RunFolder
from sft_dist.run.locks import is_locked

TAIL_BYTES = 64 * 1024  # of metrics.jsonl; the newest train and validation lines are in it


@dataclass(frozen=True)
class RunState:
    """`state`: sealed, running, finished, stopped, failed or killed; with Slurm asked, also pending and ending."""

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
    job: str = ""  # of Slurm, if it was asked
    best_score: float | None = None  # on validation while training, by the score that chooses; known once it is saved
    best_step: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def state_of(path: Path) -> RunState:
    """Raises UserError when the folder is no run folder."""
    folder = RunFolder(path)
    if not folder.recipe_file.is_file():
        raise UserError(f"{path}: no recipe.json in it, so it is not a run folder")
    attempts = folder.all_attempts()
    state, cause, user_error = _verdict(folder, attempts)
    train, validation = _newest_scores(folder.metrics_file)
    start = (attempts and read_json(attempts[-1].start_file)) or {}
    outcome = (attempts and read_json(attempts[-1].outcome_file)) or {}
    return RunState(
        name=path.resolve().parent.name,
        id=path.name,
        folder=str(path),
        state=state,
        step=int(outcome.get("last_step") or train.get("step") or start.get("first_step") or 0),
        total_steps=train.get("total_steps") or start.get("total_steps"),
        loss=train.get("loss"),
        eta_s=train.get("eta_s") if state == "running" else None,
        validation=validation or None,
        attempts=len(attempts),
        cause=cause,
        user_error=user_error,
        **_best(folder),
    )


def _best(folder: RunFolder) -> dict[str, Any]:
    """From the newest checkpoint: what is validated is saved."""
    newest = max(folder.checkpoints.glob("step-*"), default=None)
    progress = ((newest and read_json(newest / "trainer.json")) or {}).get("progress") or {}
    return {key: progress.get(key) for key in ("best_score", "best_step")}


def _verdict(folder: RunFolder, attempts: list[AttemptFolder]) -> tuple[str, str, bool]:
    """(state, cause, the user can mend it). A run that finished once stays finished."""
    if is_running(folder):
        return "running", "", False
    outcomes = [read_json(attempt.outcome_file) or {} for attempt in attempts]
    for outcome in reversed(outcomes):
        if outcome.get("state") == "finished":
            return "finished", str(outcome.get("reason", "")), False
    if not attempts:
        return "sealed", "", False
    from sft_dist.run.causes import classify_attempt  # a plan of new runs has no attempts to judge

    verdict = classify_attempt(folder, attempts[-1])
    return verdict.state, verdict.line, verdict.user_error


def is_running(folder: RunFolder) -> bool:
    """A trainer holds the run's lock, or a process of the last attempt still has its output open (it is starting)."""
    attempts = folder.all_attempts()
    files = [folder.lock_file, *([attempts[-1].launcher_log] if attempts else [])]
    return any(is_locked(file) for file in files)


def _newest_scores(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last train line and the last validation line."""
    newest: dict[str, dict[str, Any]] = {}
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
    """One line of metrics.jsonl; {} when it is not whole (the file may be growing, or start in mid-line)."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


# ── finding runs ────────────────────────────────────────────────────────────────────────────────────────────────────
def runs_root(chosen: str | None) -> Path:
    """Where run folders are: --runs, else $SFT_DIST_RUNS, else ./runs."""
    return Path(chosen or os.environ.get("SFT_DIST_RUNS") or "runs").expanduser().resolve()


def states_of(targets: Iterable[str], runs: str | None) -> list[RunState]:
    """States of all runs, or of those the targets stand for: recipes, folders, ids. Raises UserError."""
    root = runs_root(runs)
    folders: list[Path] = []
    for target in targets:
        if Path(target).is_dir():
            folders += all_runs(Path(target))
        elif Path(target).is_file():
            from launch.planning import folders_of  # reads YAML; the rest of a status does not

            folders += folders_of(target, (), root)
        else:
            folders.append(find_run(target, root))
    return [state_of(folder) for folder in (folders if targets else all_runs(root))]


def all_runs(root: Path) -> list[Path]:
    """Every run folder under a runs root, or under one recipe's folder in it."""
    if (root / "recipe.json").is_file():
        return [root]
    found = [*root.glob("*/recipe.json"), *root.glob("*/*/recipe.json")]
    return sorted((file.parent for file in found), key=lambda path: (path.parent.name, _natural(path.name)))


def find_run(text: str, root: Path) -> Path:
    """A run by its folder, its id, or the beginning of its id if only one run has it. Raises UserError."""
    if (Path(text) / "recipe.json").is_file():
        return Path(text).resolve()
    runs = all_runs(root)
    exact = [path for path in runs if text in (path.name, f"{path.parent.name}/{path.name}")]
    matches = exact or [path for path in runs if path.name.startswith(text) and text]
    if len(matches) == 1:
        return matches[0].resolve()
    if not matches:
        known = f"; known: {_some(path.name for path in runs)}" if runs else f"; there are no runs in {root}"
        raise UserError(f"no run {text!r}: neither a run folder nor the beginning of a run's id{known}")
    raise UserError(f"{text!r} fits several runs: {_some(f'{path.parent.name}/{path.name}' for path in matches)}")


def _some(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _natural(name: str) -> list[Any]:
    stem, _, number = name.partition("-")
    return [stem, int(number) if re.fullmatch(r"\d+", number) else 0]
