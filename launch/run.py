"""Trains planned runs on this machine, one after another: finished runs are skipped, unfinished ones are resumed, and a failure
does not stop the others."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from launch import render
from launch.diagnose.diagnosis import diagnose
from launch.diagnose.evidence import read_evidence
from launch.diagnose.render import top_line
from launch.local.runner import LocalRunner, run_in_this_process
from launch.planning import PlannedRun, plan_run_folder, plan_runs
from launch.run_folders import create_run_folder, relative_path
from launch.run_state import RunState, state_of
from sft_dist.recipe.text import printable
from sft_dist.recipe.trust import NO_TRUST, Trust
from sft_dist.run.folder import RunFolder
from sft_dist.run.varying import describe_settings

INTERRUPTED = 130
MANY_RUNS = 20  # more are started only after a question
LOG_LINES = 15  # shown when no rank has reported an error


def run_recipe(
    recipe: str, overrides: Sequence[str], root: Path, processes: int | None, fresh: bool, debug: bool, ask: bool
) -> int:
    """Trains all runs of a recipe; returns the exit code. `debug`: one run, in this process. Raises UserError."""
    runs = plan_runs(recipe, overrides, root, processes, fresh)
    if len(runs) > MANY_RUNS and ask:
        click.confirm(f"{len(runs):,} runs, one after another. Start?", abort=True, err=True)
    if not debug:
        return run_all(runs, LocalRunner())
    if len(runs) > 1:
        raise click.UsageError(f"--debug trains one run, but the recipe has {len(runs)}")
    return _debug(runs[0])


def resume_run(path: Path, processes: int | None, strategy: str | None, trust: Trust = NO_TRUST) -> int:
    """Resumes one run; returns the exit code. Raises UserError."""
    return run_all([plan_run_folder(path, processes, strategy, trust=trust)], LocalRunner())


def run_all(runs: Sequence[PlannedRun], runner: LocalRunner) -> int:
    """Returns the exit code: 0 all finished, 130 interrupted, 2 only the user can fix it, else 1."""
    ends: list[RunState] = []
    for number, run in enumerate(runs, 1):
        end = _run(run, runner, f"[{number}/{len(runs)}] " if len(runs) > 1 else "")
        ends.append(replace(end, point=run.plan.point))
        if runner.interrupted:
            break
    if len(runs) > 1:
        _print(f"\n{render.describe_run_states(ends)}")
        if num_skipped := len(runs) - len(ends):
            _print(f"{num_skipped} not started")
    if runner.interrupted:
        return INTERRUPTED
    unfinished = [end for end in ends if end.state != "finished"]
    if not unfinished:
        return 0
    return 2 if all(end.user_error for end in unfinished) else 1


def _run(run: PlannedRun, runner: LocalRunner, prefix: str) -> RunState:
    plan = run.plan
    name = f"{prefix}{plan.name}/{plan.folder.name}"
    if (plan.folder / "recipe.json").is_file():
        before = state_of(plan.folder)
        if before.state == "finished":
            _print(f"{name} is already finished (--fresh trains it again)")
            return before
        if before.state == "running":
            _print(f"{name} is already running")
            return before
        if before.attempts:
            _print(f"{name} was {before.state} at step {before.step}; resuming")
    folder = create_run_folder(plan, run.run.recipe)
    point = describe_settings(plan.point)
    total = f"{plan.steps.total:,} steps" if plan.steps else "steps not known yet"
    _print(f"{name}{f' ({point})' if point else ''}: {total}, {render.batch_equation(plan)}")
    end = runner.run(folder, plan)
    _print(_describe_end(folder, end))
    if line := diagnosis_line(folder, end):
        _print(line)
    if end.state == "failed" and not end.user_error and " no rank reported an error" in end.cause:
        _print(render.tail(folder.all_attempts()[-1].launcher_log, LOG_LINES))
    return end


def _debug(run: PlannedRun) -> int:
    folder = create_run_folder(run.plan, run.run.recipe)
    code = run_in_this_process(folder, run.plan)
    _print(_describe_end(folder, state_of(folder.path)))
    return code


def _describe_end(folder: RunFolder, end: RunState) -> str:
    return render.describe_end(end, f"sft-dist resume {shlex.quote(str(relative_path(folder.path)))}")


def diagnosis_line(folder: RunFolder, end: RunState) -> str:
    """Returns the most likely cause of what went wrong; an empty text where nothing is conspicuous."""
    if end.user_error or not folder.metrics_file.is_file():
        return ""
    cause = top_line(diagnose(read_evidence(end)))
    return f"  {cause}: sft-dist diagnose {shlex.quote(str(relative_path(folder.path)))}" if cause else ""


def stop_run(folder: RunFolder, timeout_s: float) -> RunState:
    """Asks a run to save and exit, and waits for it. The stop file is written again if a trainer that was still starting has
    removed it."""
    deadline = time.monotonic() + timeout_s
    while (state := state_of(folder.path)).state == "running" and time.monotonic() < deadline:
        if not folder.stop_file.exists():
            folder.stop_file.touch(mode=0o600)
        time.sleep(0.2)
    if state.state != "running":
        folder.stop_file.unlink(missing_ok=True)
    return state


def _print(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
