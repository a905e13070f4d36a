"""`accelerate launch -m sft_dist.train RUN_OR_RECIPE`: one process of a training run.

Calls `training.build`, then `loop.run`, and records how the attempt ended. Works the same under
`accelerate launch`, torchrun, srun with RANK/WORLD_SIZE set, and plain `python -m`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from bdb import BdbQuit
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from sft_dist.recipe.arithmetic import batch_of
from sft_dist.recipe.errors import Problem, UserError, collected
from sft_dist.recipe.load import read, validate
from sft_dist.recipe.machine import missing_packages
from sft_dist.recipe.model_folder import unusable_targets
from sft_dist.recipe.references import check_references
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tied_embeddings import unmergeable_targets
from sft_dist.recipe.units import seconds_of
from sft_dist.run.folder import AttemptFolder, RunFolder, run_id
from sft_dist.run.locks import is_locked
from sft_dist.run.manifest import write_manifest
from sft_dist.run.rank_environment import read_launcher, remove_torchrun_folder, require_all_ranks

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("sft_dist")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 finished or stopped after saving, 2 the user's fault, 1 anything else."""
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.train",
        description="Train one run.",
        epilog="example: accelerate launch --multi_gpu --num_processes 2 -m sft_dist.train recipes/text-classification/quickstart.yaml",
    )
    parser.add_argument("target", help="a run folder, or a recipe file without a matrix")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--runs", default=os.environ.get("SFT_DIST_RUNS", "runs"), help="where run folders are made (runs)"
    )
    options = parser.parse_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    remove_torchrun_folder(os.environ)
    folder, is_new = None, False
    try:
        require_all_ranks(os.environ, *read_launcher())
        folder, is_new = open_run(options.target, options.overrides, Path(options.runs))
        code = train(folder)
    except UserError as error:
        if rank == 0:
            print(error, file=sys.stderr)
        code = 2
    # Several ranks may still be writing, and say in the folder in what they differ.
    if code == 2 and folder and is_new and os.environ.get("WORLD_SIZE", "1") == "1":
        _remove_refused(folder)
    return code


def _remove_refused(folder: RunFolder) -> None:
    """Removes the folder of a run that was refused before its first step, with those above it in which nothing else is."""
    if is_locked(folder.lock_file) or folder.metrics_file.exists() or folder.checkpoints.exists():
        return
    shutil.rmtree(folder.path, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.path.parent.rmdir()
        folder.path.parent.parent.rmdir()


def open_run(target: str, overrides: list[str], runs: Path) -> tuple[RunFolder, bool]:
    """Returns the run folder a target stands for, and whether it was made, which only a recipe that can be trained is. Raises
    UserError."""
    if Path(target).is_dir():
        folder = RunFolder(Path(target).resolve())
        if not folder.recipe_file.is_file():
            raise UserError(f"{target}: no recipe.json in it, so it is not a run folder")
        if overrides:
            raise UserError(f"{target} is sealed; settings can be replaced only with a recipe file")
        return folder, False
    source = read(target, overrides)
    if source.data.get("matrix"):
        raise UserError(
            f"{target}: has a matrix, so it stands for several runs; start them with `sft-dist run {target}`"
        )
    recipe = validate(source)
    folder = RunFolder((runs / recipe.name / run_id(recipe)).resolve())
    is_new = not folder.recipe_file.exists()
    if is_new:
        _require_trainable(recipe, int(os.environ.get("WORLD_SIZE", "1")))
        folder.create(recipe)
        write_manifest(folder.path)
    return folder, is_new


def _require_trainable(recipe: Recipe, world_size: int) -> None:
    """Raises UserError for what a plan would refuse and this program would find late."""
    checks = (check_references, missing_packages, unmergeable_targets, unusable_targets)
    problems: list[Problem] = [problem for check in checks for problem in check(recipe)]
    with collected(problems):
        batch_of(recipe, world_size)
    if problems:
        raise UserError(problems)


def train(folder: RunFolder) -> int:
    """Train a run to its end, or until asked to stop."""
    started = time.monotonic()
    stop_requested = _catch_signals()
    os.umask(0o077)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts

    if os.environ.get("RANK", "0") == "0":  # the log is empty until then
        print(f"{time.strftime('%H:%M:%S')} rank 0 importing the libraries", file=sys.stderr, flush=True)
    # Imported late: signals are caught and invalid arguments refused before seconds of imports.
    import torch

    from sft_dist.engines import start_engine
    from sft_dist.logging_setup import quiet_libraries
    from sft_dist.run import attempt as at
    from sft_dist.run.environment import cpu_name, package_versions
    from sft_dist.run.failures import Failure
    from sft_dist.run.heartbeat import Heartbeat
    from sft_dist.training import loop
    from sft_dist.training.build import build
    from sft_dist.training.out_of_memory import explained

    quiet_libraries()
    try:
        recipe = folder.recipe()
        engine = start_engine(recipe, folder)
        attempt, lock = _enter(folder, engine.accelerator)
    except BaseException as error:
        if "SFT_DIST_ATTEMPT" in os.environ:  # a launcher waits for the outcome
            at.record_error(at.open_attempt(folder), int(os.environ.get("RANK", "0")), 0, error)
        raise
    accelerator = engine.accelerator
    rank = accelerator.process_index
    at.start_logging(attempt, rank)
    heartbeat = Heartbeat(attempt, rank, seconds_of(recipe.resources.hang_timeout))
    cleanup = ExitStack()
    t = None
    try:
        t = build(recipe, folder, attempt.number, engine, stop_requested, heartbeat.tick, cleanup)
        if accelerator.is_main_process:
            at.record_start(
                attempt,
                world_size=accelerator.num_processes,
                first_step=t.progress.step,
                total_steps=t.steps.total,
                torch=torch.__version__,
                packages=package_versions(),
                device=torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
                startup_s=round(time.monotonic() - started, 1),
                **at.job_facts(),
            )
        accelerator.wait_for_everyone()
        state, reason = loop.run(t)
        if accelerator.is_main_process:
            at.record_outcome(attempt, state, t.progress.step, reason)
            folder.stop_file.unlink(missing_ok=True)  # the request has been met
            log.info("%s at step %d/%d: %s", state, t.progress.step, t.steps.total, reason)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return 0
    except BdbQuit:
        at.record_outcome(attempt, "stopped", t.progress.step if t else 0, "ended in the debugger")
        log.info("ended in the debugger")
        return 1
    except BaseException as raised:
        failure = explained(raised, recipe, accelerator.num_processes, t, heartbeat.reached[1])
        at.record_error(attempt, rank, t.progress.step if t else 0, failure)
        if t:
            t.saver.wait_for_pending()
        if isinstance(failure, (UserError, Failure)):
            log.error("%s", failure)
        else:
            log.exception("rank %d failed", rank)
        return 2 if isinstance(failure, UserError) else 1
    finally:
        heartbeat.stop()
        cleanup.close()
        if lock is not None:
            os.close(lock)


def _enter(folder: RunFolder, accelerator: Accelerator) -> tuple[AttemptFolder, int | None]:
    """The attempt, the same on every rank, and on rank 0 the lock on the run. Raises UserError on every rank."""
    # Imported late: signals are caught and invalid arguments refused before seconds of imports.
    from accelerate.utils import broadcast_object_list

    from sft_dist.run import attempt as at

    lock = None
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            lock = at.take_lock(folder)
            outcome[0] = at.open_attempt(folder)
        except UserError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    attempt, refused = outcome
    if refused is not None:
        raise refused
    return attempt, lock


def _catch_signals() -> list[str]:
    """SIGTERM and the first Ctrl-C ask the loop to save and leave; the second Ctrl-C interrupts at once."""
    requested: list[str] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and requested:
            raise KeyboardInterrupt
        requested.append(f"received {signal.Signals(number).name}")

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return requested


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)  # gloo's threads sometimes abort an orderly exit after all work is done
    sys.exit(code)
