"""Runs prepared runs one after another: what is finished is skipped, what is unfinished goes on, failures do not stop
the rest."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch import render
from launch.local.base import Backend
from launch.planning import PlannedRun, with_states
from launch.run_folders import create_run_folder
from launch.run_state import RunState, state_of
from sft_dist.run.folder import RunFolder

INTERRUPTED = 130
MANY_RUNS = 20  # more are asked about first


def run_all(prepared: Sequence[PlannedRun], backend: Backend) -> int:
    """Exit code: 0 all finished, 130 interrupted, 2 only the user can mend it, else 1."""
    ends: list[RunState] = []
    for number, one in enumerate(prepared, 1):
        ends.append(_run_one(one, backend, f"[{number}/{len(prepared)}] " if len(prepared) > 1 else ""))
        if backend.interrupted:
            break
    if len(prepared) > 1:
        _say(f"\n{render.states(ends)}")
        if left := len(prepared) - len(ends):
            _say(f"{left} not started")
    if backend.interrupted:
        return INTERRUPTED
    unfinished = [end for end in ends if end.state != "finished"]
    if not unfinished:
        return 0
    return 2 if all(end.user_error for end in unfinished) else 1


def submit_here(prepared: Sequence[PlannedRun], evaluate: bool, dry_run: bool) -> int:
    """`submit --cluster local`: the same plans through the local backend, and what was saved is judged; exit code."""
    from launch.evaluate import all_evaluated, leaderboard_folder, sweep
    from launch.local.runner import Local

    if dry_run:
        print(render.plans(with_states(prepared)))
        return 0
    code = run_all(prepared, Local())
    saved = [one.plan.folder for one in prepared if any(RunFolder(one.plan.folder).checkpoints.glob("step-*"))]
    board = leaderboard_folder([one.plan for one in prepared])
    if not evaluate or code == INTERRUPTED or not saved or all_evaluated(saved, board):
        return code
    return sweep(saved, board, force=False) or code


def _run_one(one: PlannedRun, backend: Backend, prefix: str) -> RunState:
    plan = one.plan
    if (plan.folder / "recipe.json").is_file():
        before = state_of(plan.folder)
        if before.state in ("finished", "running"):
            why = "finished already (--fresh trains it again)" if before.state == "finished" else "is running already"
            _say(f"{prefix}{plan.name}/{plan.folder.name} {why}")
            return before
        if before.attempts:
            _say(f"{prefix}{plan.name}/{plan.folder.name} was {before.state} at step {before.step}; going on")
    folder = create_run_folder(plan, one.run.recipe)
    point = ", ".join(f"{key}={render.short(value)}" for key, value in plan.point.items())
    total = f"{plan.steps.total:,} steps" if plan.steps else "steps not known yet"
    _say(f"{prefix}{plan.name}/{folder.id}{f' ({point})' if point else ''}: {total}, {render.batch_equation(plan)}")
    end = backend.run(folder, plan)
    _say(render.verdict(end, f"sft-dist resume {shlex.quote(str(_shown(folder.path)))}"))
    if end.state == "failed" and not end.user_error and " no rank reported an error" in end.cause:
        _say(render.tail(folder.all_attempts()[-1].launcher_log, 15))
    return end


def run_in_this_process(one: PlannedRun) -> int:
    """--debug: one run, no child process."""
    from launch.local.runner import run_here

    folder = create_run_folder(one.plan, one.run.recipe)
    code = run_here(folder, one.plan)
    _say(render.verdict(state_of(folder.path), f"sft-dist resume {shlex.quote(str(_shown(folder.path)))}"))
    return code


def stop(folder: RunFolder, patience_s: float) -> RunState:
    """Ask a running run to save and leave, and wait for it. The file is written again if a trainer that was still
    starting has removed it."""
    deadline = time.monotonic() + patience_s
    while (now := state_of(folder.path)).state == "running" and time.monotonic() < deadline:
        if not folder.stop_file.exists():
            folder.stop_file.touch(mode=0o600)
        time.sleep(0.2)
    if now.state != "running":
        folder.stop_file.unlink(missing_ok=True)
    return now


def _shown(path: Path) -> Path:
    """Relative to where the user stands, if it lies below."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
