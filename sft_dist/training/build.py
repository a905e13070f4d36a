"""Builds what the loop works on: data, model, optimizer, and the newest good checkpoint in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import PreTrainedTokenizerBase

from sft_dist.batches.chunks import Chunks, single_chunk
from sft_dist.batches.stream import open_stream
from sft_dist.checkpoints import store as ckpt
from sft_dist.checkpoints.saver import Saver
from sft_dist.data.prepare import Prepared, prepare
from sft_dist.data.rows import Examples
from sft_dist.data.splits import keep_splits
from sft_dist.engines.base import Engine
from sft_dist.recipe.arithmetic import Batch, batch_of, steps_of
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.machine import missing_packages, needs_gpu
from sft_dist.recipe.metrics import selection_metric
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tunings import export_form, has_adapter, virtual_tokens
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from sft_dist.tasks.loading import largest_tokens, positions_of
from sft_dist.tasks.models import build_model, load_processor
from sft_dist.trackers import hyperparameters, trackers_of
from sft_dist.training.progress import Progress
from sft_dist.training.rank_consistency import require_agreement
from sft_dist.training.snapshot import restore
from sft_dist.training.state import Training
from sft_dist.tuning import load_weights, require_mergeable
from sft_dist.tuning.model_options import for_training
from sft_dist.tuning.optimizers import build_optimizer, build_schedule

log = logging.getLogger("sft_dist")


def build(
    recipe: Recipe,
    folder: RunFolder,
    attempt: int,
    engine: Engine,
    stop_requested: list[str],
    heartbeat: Callable[[int, str], None],
    cleanup: ExitStack,
) -> Training:
    """Loads data and model, makes the optimizer, and restores the newest good checkpoint. Raises UserError."""
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
    if has_adapter(recipe.tuning) and export_form(recipe) == "merged":
        require_mergeable(model)
    checkpoint = _resume_point(folder, accelerator)
    progress = Progress()
    if checkpoint:
        load_weights(model, checkpoint.model)
        progress = Progress.read(checkpoint.trainer_state()["progress"])
    if recipe.data.streaming:
        chunks: Chunks = open_stream(folder, recipe, accelerator, progress.stream)
    else:
        chunks = single_chunk(examples["train"], recipe, task)
    cleanup.callback(chunks.close)
    first = chunks.at(progress.step + 1).examples
    if task.counts_tokens:
        longest = max(int(split.lengths.max()) for split in examples.values())
        # What is still to come in a stream can be as long as it is allowed to be.
        longest = max(longest, recipe.data.max_length) if recipe.data.streaming else longest
        _check_positions(model, longest, virtual_tokens(recipe.tuning))
        _check_token_ids(model, examples, data.processor, recipe)
    require_agreement(recipe, data, {**examples, "train": first}, model)
    # After that, since a rank with other rows than the others would refuse them alone.
    if accelerator.is_main_process or folder.splits_file.exists():
        keep_splits(folder.splits_file, {split: rows.ids for split, rows in data.splits.items()}, data.contents)
    if accelerator.is_main_process:
        _log_training(recipe, data, first, model, batch)
        if checkpoint:
            log.info("resuming from %s", checkpoint.path.name)
    engine.prepare(for_training(model, recipe), lambda model: build_optimizer(model, recipe.train))
    schedule = build_schedule(engine.optimizer, recipe.train.schedule, steps.warmup, steps.total)
    if checkpoint:
        restore(checkpoint, engine, schedule)
    accelerator.log_with = trackers_of(recipe, folder) if accelerator.is_main_process else []
    accelerator.init_trackers("tracking", hyperparameters(recipe))

    metric, direction = selection_metric(recipe)
    return Training(
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


def _log_training(recipe: Recipe, data: Prepared, train: Examples, model: nn.Module, batch: Batch) -> None:
    counts = [f"{len(rows)} {split}" for split, rows in data.examples.items()]
    log.info(
        "%s; dropped %s",
        ", ".join(["a training stream", *counts] if recipe.data.streaming else counts),
        ", ".join(f"{count} {reason}" for reason, count in data.dropped.items() if count) or "nothing",
    )
    if train.num_truncated:
        log.info(
            "%d of %d training examples reach data.max_length %d and are truncated",
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
    """Raises UserError for texts longer than the model's table of positions, which would end in an index error deep inside it.

    `virtual`: tokens that the tuning puts before each text.
    """
    positions = positions_of(model.config)
    if positions is not None and positions < longest + virtual:
        virtual_text = f" and {virtual} virtual tokens before them" if virtual else ""
        problem = f"the model has {positions} positions, but texts have up to {longest} tokens{virtual_text}"
        hint = (
            f"set data.max_length={positions - virtual}" if positions > virtual else "use fewer tuning.virtual_tokens"
        )
        raise UserError(Problem(problem, path="data.max_length", hint=hint))


def _check_token_ids(
    model: nn.Module, examples: Mapping[str, Examples], tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> None:
    """Raises UserError for tokens without a row in the embeddings, which would end in an index error deep inside the model."""
    num_rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if len(tokenizer) <= num_rows:
        return
    for split, encoded in examples.items():
        largest = int(largest_tokens(encoded).max())
        if largest >= num_rows:
            message = f"the tokenizer encodes the {split} rows with tokens that the model has no embedding for"
            value = f"token {tokenizer.convert_ids_to_tokens(largest)!r}, id {largest}; the model has ids 0 to {num_rows - 1}"
            hint = (
                "use the model's own tokenizer, or save the model after model.resize_token_embeddings(len(tokenizer))"
            )
            path = "model.tokenizer" if recipe.model.tokenizer else "model.path"
            raise UserError(Problem(message, path, value=value, hint=hint))


def _resume_point(folder: RunFolder, accelerator: Accelerator) -> ckpt.Checkpoint | None:
    """Returns the newest checkpoint that verifies, the same on every rank. Damaged newer ones are set aside and named. Raises
    UserError for a newer one of another run: it is whole, and to train past it would lose what one of the two runs has
    learned."""
    step: list[int | None] = [None]
    if accelerator.is_main_process:
        for name in ckpt.clear_unfinished(folder):
            log.warning("%s was incomplete when the run ended; removing it", name)
        newest, damaged = ckpt.newest_good(folder)
        for newer in ckpt.present(folder):
            if (newest is None or newer.step > newest.step) and (other := ckpt.other_run(newer)):
                message = (
                    f"{newer.path} belongs to another run ({other}), or recipe.json was changed after it was written"
                )
                raise UserError(
                    Problem(message, hint="restore recipe.json, move the checkpoint out of the way, or start a new run")
                )
        for line in damaged:
            log.warning("%s; %s", line, f"using {newest.path.name}" if newest else "training starts over")
        for newer in ckpt.present(folder):
            if newest is None or newer.step > newest.step:
                ckpt.mark_damaged(newer.path)
        step[0] = newest.step if newest else None
    broadcast_object_list(step)
    return ckpt.Checkpoint(folder.checkpoint(step[0]), step[0]) if step[0] is not None else None
