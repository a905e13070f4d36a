"""What to do when memory is out: which batch was in hand, and the one change of the recipe that would help first."""

from __future__ import annotations

import math
import socket
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_dist.evaluation.inference import length_sorted_batches
from sft_dist.recipe.arithmetic import batch_of
from sft_dist.recipe.checks import cross_checks
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.strategies import STRATEGIES, UNPLANNED
from sft_dist.run.failures import OutOfMemory, is_out_of_memory

if TYPE_CHECKING:
    from sft_dist.training.state import Training

# What a stage needs memory for: `training` is forward and backward, `updating` the optimizer's step. While `starting` and
# `saving`, the machine's memory holds whole models and nothing in the recipe changes that.
FITTING = {
    "training": ("activations", "weights"),
    "updating": ("weights",),
    "validating": ("predictions", "weights"),
    "starting": ("weights",),
    "saving": (),
}
MORE_MEMORY = "give each machine more memory (resources.memory) or fewer processes (resources.processes_per_node)"

Change = tuple[str, Any, str]  # key path, value, what else it does


def explained(error: BaseException, recipe: Recipe, world_size: int, t: Training | None, phase: str) -> BaseException:
    """Returns an OutOfMemory for any error that means it; every other error as it is."""
    if not is_out_of_memory(error):
        return error
    traceback.clear_frames(error.__traceback__)  # they hold the tensors that were too many
    on_gpu = torch.cuda.is_available()
    of_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)
    stage = "updating" if phase == "training" and _in_optimizer(error) else phase
    # A process with a GPU needs the machine's own memory for loading and saving only.
    advised = advice(recipe, world_size, stage if of_gpu == on_gpu else "saving", on_gpu)
    device = f"the GPU of {socket.gethostname()}" if of_gpu else socket.gethostname()
    moment = f"step {t.progress.step + (phase == 'training')}, {stage}" if t else stage
    message = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    failure = OutOfMemory(
        f"{device} is out of memory ({moment}){_batch_in_hand(t, phase)}. To make it fit: {advised}. [{message}]"
    )
    failure.__cause__ = error
    return failure


def advice(recipe: Recipe, world_size: int, stage: str, on_gpu: bool) -> str:
    """Returns the first change of the table that helps at this stage, applies, and makes a valid recipe. Pure."""
    for need, change_of in CHANGES:
        if need in FITTING[stage] and (change := change_of(recipe, world_size, on_gpu)) and _valid(recipe, change):
            path, value, effect = change
            setting = str(value).lower() if isinstance(value, bool) else value
            return f"set {path}={setting} ({effect})"
    return MORE_MEMORY


def largest(lengths: np.ndarray, batches: Iterable[np.ndarray]) -> tuple[int, int, int]:
    """Returns (examples, tokens of the longest, tokens with padding) of the micro-batch that needs most memory."""
    sizes = [(len(batch), int(lengths[batch].max())) for batch in batches if len(batch)]
    examples, longest = max(sizes, key=math.prod, default=(0, 0))
    return examples, longest, examples * longest


# ── changes, the least harmful first ────────────────────────────────────────────────────────────────────────────────
def _smaller_evaluation(recipe: Recipe, world_size: int, on_gpu: bool) -> Change | None:
    size = recipe.evaluate.micro_batch
    return ("evaluate.micro_batch", size // 2, "the scores stay the same") if size > 1 else None


def _smaller_micro_batch(recipe: Recipe, world_size: int, on_gpu: bool) -> Change | None:
    """Proposes at most half, such that the global batch still divides evenly."""
    batch = batch_of(recipe, world_size)
    share = batch.global_batch // batch.world_size
    smaller = [size for size in range(1, batch.micro_batch // 2 + 1) if share % size == 0]
    effect = f"half of {batch.micro_batch} or less; the results stay the same, because the global batch does"
    return ("train.micro_batch", smaller[-1], effect) if smaller else None


def _checkpointed_gradients(recipe: Recipe, world_size: int, on_gpu: bool) -> Change | None:
    effect = "the results stay the same; about a third slower"
    return None if recipe.train.gradient_checkpointing else ("train.gradient_checkpointing", True, effect)


def _half_precision(recipe: Recipe, world_size: int, on_gpu: bool) -> Change | None:
    effect = "activations in 16 bits, weights stay in 32"
    return ("train.precision", "bf16", effect) if recipe.train.precision == "fp32" else None


def _shorter_texts(recipe: Recipe, world_size: int, on_gpu: bool) -> Change | None:
    longest = recipe.data.max_length
    return ("data.max_length", longest // 2, "longer texts are truncated") if longest > 1 else None


def _sharded(recipe: Recipe, world_size: int, on_gpu: bool) -> Change | None:
    """Proposes the next strategy, which shards more."""
    name = STRATEGIES.get(recipe.train.strategy.name, UNPLANNED).next_strategy
    effect = f"{world_size} processes shard what each now holds in full"
    return ("train.strategy", {"name": name}, effect) if name and world_size > 1 else None


def _offloaded(recipe: Recipe, world_size: int, on_gpu: bool) -> Change | None:
    if not on_gpu:
        return None
    for option in STRATEGIES.get(recipe.train.strategy.name, UNPLANNED).offload_options:
        if getattr(recipe.train.strategy, option) == "none":
            return (f"train.strategy.{option}", "cpu", "main memory instead of GPU memory; slower")
    return None


def _adapters(recipe: Recipe, world_size: int, on_gpu: bool) -> Change | None:
    effect = "gradients and optimizer state for few weights only; training differs, so tune train.lr again"
    return ("tuning", {"method": "lora"}, effect) if recipe.tuning.method == "full" else None


CHANGES: tuple[tuple[str, Callable[[Recipe, int, bool], Change | None]], ...] = (
    ("predictions", _smaller_evaluation),
    ("activations", _smaller_micro_batch),
    ("activations", _checkpointed_gradients),
    ("activations", _half_precision),
    ("weights", _sharded),
    ("weights", _offloaded),
    ("weights", _adapters),
    ("activations", _shorter_texts),
    ("predictions", _shorter_texts),
)


def _valid(recipe: Recipe, change: Change) -> bool:
    path, value, _ = change
    data = recipe.model_dump(exclude_unset=True)
    *sections, key = path.split(".")
    section = data
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    try:
        return not cross_checks(Recipe.model_validate(data))
    except ValueError:
        return False


# ── what was in hand ────────────────────────────────────────────────────────────────────────────────────────────────
def _batch_in_hand(t: Training | None, phase: str) -> str:
    if t is None or phase not in ("training", "validating"):
        return ""
    rank = t.accelerator.process_index
    if phase == "training":
        step = t.progress.step + 1
        lengths, batches = t.chunks.at(step).examples.lengths, t.source.indices(step)
    else:
        assert t.validation is not None
        lengths = t.validation.lengths
        batches = length_sorted_batches(lengths, t.recipe.evaluate.micro_batch)[rank :: t.batch.world_size]
    examples, longest, tokens = largest(lengths, batches)
    return f"; rank {rank}'s largest micro-batch has {examples} examples, the longest of {longest} tokens, {tokens} tokens in total"


def _in_optimizer(error: BaseException) -> bool:
    """Whether the error is raised in an engine's `step`, when the activations are freed."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == "step" and "engines" in code.co_filename:
            return True
        trace = trace.tb_next
    return False
