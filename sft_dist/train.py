"""`accelerate launch -m sft_dist.train RUN_OR_RECIPE`: one process of a training run.

Calls `training.build`, then `loop.run`, and records how the attempt ended. Works the same under
`accelerate launch`, torchrun, srun with RANK/WORLD_SIZE set, and plain `python -m`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import read, validate
<<<<<<< HEAD
from sft_dist.recipe.machine import missing_packages, needs_gpu
from sft_dist.recipe.metrics import selection_metric
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tunings import virtual_tokens
=======
>>>>>>> main
from sft_dist.recipe.units import seconds_of
from sft_dist.run.folder import AttemptFolder, RunFolder, run_id

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("sft_dist")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 finished or stopped after saving, 2 the user's fault, 1 anything else."""
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.train",
        description="Train one run.",
        epilog="example: accelerate launch --num_processes 2 -m sft_dist.train recipes/text-classification/quickstart.yaml",
    )
    parser.add_argument("target", help="a run folder, or a recipe file without a matrix")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--runs", default=os.environ.get("SFT_DIST_RUNS", "runs"), help="where run folders are made (runs)"
    )
    options = parser.parse_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    try:
        return train(open_run(options.target, options.overrides, Path(options.runs)))
    except UserError as error:
        if rank == 0:
            print(error, file=sys.stderr)
        return 2


def open_run(target: str, overrides: list[str], runs: Path) -> RunFolder:
    """The run folder a target stands for; made when the target is a recipe. Raises UserError."""
    if Path(target).is_dir():
        folder = RunFolder(Path(target).resolve())
        if not folder.recipe_file.is_file():
            raise UserError(f"{target}: no recipe.json in it, so it is not a run folder")
        if overrides:
            raise UserError(f"{target} is sealed; settings can be replaced only with a recipe file")
        return folder
    source = read(target, overrides)
    if source.data.get("matrix"):
        raise UserError(
            f"{target}: has a matrix, so it stands for several runs; start them with `sft-dist run {target}`"
        )
    recipe = validate(source)
    folder = RunFolder((runs / recipe.name / run_id(recipe)).resolve())
    folder.create(recipe)
    return folder


def train(folder: RunFolder) -> int:
    """Train a run to its end, or until asked to stop."""
    stop_requested = _catch_signals()
    os.umask(0o077)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts

    # Imported late: signals are caught and invalid arguments refused before seconds of imports.
    import torch

    from sft_dist.engines import start_engine
    from sft_dist.logging_setup import quiet_libraries
    from sft_dist.run import attempt as at
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


<<<<<<< HEAD
def build(
    recipe: Recipe,
    folder: RunFolder,
    attempt: int,
    engine: Engine,
    stop_requested: list[str],
    heartbeat: Callable[[int, str], None],
    cleanup: ExitStack,
) -> state.Training:
    """Data, model, optimizer, and the newest good checkpoint in them. Raises UserError."""
    # Imported late: signals are caught and invalid arguments refused before seconds of imports.
    import torch

    from sft_dist.batches.chunks import single_chunk
    from sft_dist.batches.stream import open_stream
    from sft_dist.checkpoints.saver import Saver
    from sft_dist.data.prepare import prepare
    from sft_dist.data.splits import keep_splits
    from sft_dist.recipe.arithmetic import batch_of, steps_of
    from sft_dist.tasks import task_of
    from sft_dist.tasks.models import build_model, load_processor
    from sft_dist.training import state
    from sft_dist.training.rank_consistency import require_agreement
    from sft_dist.training.snapshot import restore
    from sft_dist.tuning import load_weights
    from sft_dist.tuning.model_options import for_training
    from sft_dist.tuning.optimizers import build_optimizer, build_schedule

    # Looked at when the run was planned, if it was planned, and then perhaps on another machine.
    if problems := [*missing_packages(recipe), *(() if torch.accelerator.is_available() else needs_gpu(recipe))]:
        raise UserError(problems)
    torch.use_deterministic_algorithms(recipe.train.deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs time in every new tensor
    accelerator = engine.accelerator
    batch = batch_of(recipe, accelerator.num_processes)
    task = task_of(recipe)
    data = prepare(recipe, task, load_processor(recipe, task))
    examples = data.examples
    steps = steps_of(recipe, None if recipe.data.streaming else len(examples["train"]))

    model = build_model(recipe, task, data.processor)
    checkpoint = _resume_point(folder, accelerator)
    progress = state.Progress()
    if checkpoint:
        load_weights(model, checkpoint.model)
        progress = state.Progress.read(checkpoint.trainer_state()["progress"])
    if recipe.data.streaming:
        chunks: Chunks = open_stream(folder, recipe, accelerator, progress.stream)
    else:
        chunks = single_chunk(examples["train"], recipe)
    cleanup.callback(chunks.close)
    first = chunks.at(progress.step + 1).examples
    if task.counts_tokens:
        longest = max(int(split.lengths.max()) for split in examples.values())
        # What is still to come in a stream can be as long as it is allowed to be.
        longest = max(longest, recipe.data.max_length) if recipe.data.streaming else longest
        _check_positions(model, longest, virtual_tokens(recipe.tuning))
    require_agreement(recipe, data, {**examples, "train": first}, model)
    # After that, since a rank with other rows than the others would refuse them alone.
    if accelerator.is_main_process or folder.splits_file.exists():
        keep_splits(folder.splits_file, {split: rows.ids for split, rows in data.splits.items()}, data.contents)
    if accelerator.is_main_process:
        _say_what_is_trained(recipe, data, first, model, batch)
        if checkpoint:
            log.info("resuming from %s", checkpoint.path.name)
    engine.prepare(for_training(model, recipe), lambda model: build_optimizer(model, recipe.train))
    schedule = build_schedule(engine.optimizer, recipe.train.schedule, steps.warmup, steps.total)
    if checkpoint:
        restore(checkpoint, engine, schedule)
    accelerator.init_trackers("tracking")

    metric, direction = selection_metric(recipe)
    return state.Training(
        recipe=recipe,
        folder=folder,
        attempt=attempt,
        engine=engine,
        saver=Saver(
            folder, attempt, accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone
        ),
        task=task,
        processor=data.processor,
        schedule=schedule,
        loss=task.build_loss(first),
        chunks=chunks,
        validation=examples.get("validation"),
        batch=batch,
        steps=steps,
        metric=metric,
        direction=direction,
        progress=progress,
        stop_requested=stop_requested,
        heartbeat=heartbeat,
    )


def _say_what_is_trained(recipe: Recipe, data: Prepared, train: Examples, model: nn.Module, batch: Batch) -> None:
    counts = [f"{len(rows)} {split}" for split, rows in data.examples.items()]
    log.info(
        "%s; dropped %s",
        ", ".join(["a stream to train on", *counts] if recipe.data.streaming else counts),
        ", ".join(f"{count} {reason}" for reason, count in data.dropped.items() if count) or "nothing",
    )
    if train.num_truncated:
        log.info(
            "%d of %d training examples reach data.max_length %d and are cut there",
            train.num_truncated,
            len(train),
            recipe.data.max_length,
        )
    log.info(
        "%s, %s: %s of %s weights trained; %d process(es) x micro-batch %d x accumulation %d = global batch %d",
        type(model).__name__,
        recipe.tuning.method,
        f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}",
        f"{sum(p.numel() for p in model.parameters()):,}",
        batch.world_size,
        batch.micro_batch,
        batch.accumulation,
        batch.global_batch,
    )


def _check_positions(model: nn.Module, longest: int, virtual: int) -> None:
    """A text longer than the model's table of positions would end in an index error deep inside it.

    `virtual`: tokens that the tuning puts before each text.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < longest + virtual:
        virtual_text = f" and {virtual} virtual ones before it" if virtual else ""
        problem = f"the model has {positions} positions, and texts have up to {longest} tokens{virtual_text}"
        hint = (
            f"set data.max_length={positions - virtual}" if positions > virtual else "use fewer tuning.virtual_tokens"
        )
        raise UserError(Problem(problem, path="data.max_length", hint=hint))


def _resume_point(folder: RunFolder, accelerator: Accelerator) -> ckpt.Checkpoint | None:
    """The newest checkpoint that verifies, the same on every rank. Damaged newer ones are set aside and named."""
    # Imported late: signals are caught and invalid arguments refused before seconds of imports.
    from accelerate.utils import broadcast_object_list

    from sft_dist.checkpoints import store as ckpt

    step: list[int | None] = [None]
    if accelerator.is_main_process:
        for name in ckpt.clear_unfinished(folder):
            log.warning("%s was only half-written when the run ended; it is removed", name)
        newest, damaged = ckpt.newest_good(folder)
        for line in damaged:
            log.warning("%s; using %s", line, newest.path.name if newest else "nothing: training starts over")
        for newer in ckpt.present(folder):
            if newest is None or newer.step > newest.step:
                ckpt.mark_damaged(newer.path)
        step[0] = newest.step if newest else None
    broadcast_object_list(step)
    return ckpt.Checkpoint(folder.checkpoint(step[0]), step[0]) if step[0] is not None else None


=======
>>>>>>> main
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
