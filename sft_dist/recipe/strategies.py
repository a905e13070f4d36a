"""What a strategy cannot be combined with, whatever the machine. Asked for what a recipe names, and for what `auto` may choose.
Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from sft_dist.recipe.errors import Problem
from sft_dist.recipe.optimizers import ELEMENTWISE
from sft_dist.recipe.schema import Recipe, Train
from sft_dist.recipe.tunings import refusal, strategies_for

# Strategies under which a process has only part of a weight, or of its optimizer's state.
SHARING = ("zero1", "zero2", "zero3", "fsdp2")


def refusals(strategy: str, recipe: Recipe) -> list[Problem]:
    """Every setting of the recipe that `strategy` cannot work with, with the reason."""
    train, tuning = recipe.train, recipe.tuning
    found = []
    if reason := refusal(strategy, tuning):
        valid = ("auto", *strategies_for(tuning))
        found.append(
            Problem(f"not with tuning: {tuning.method}: {reason}", "train.strategy", value=strategy, valid=valid)
        )
    if strategy in SHARING and train.optimizer.name not in ELEMENTWISE:
        reason = f"updates a weight as a whole, and with {strategy} a process has only part of it"
        valid = tuple(sorted(ELEMENTWISE))
        hint = "or set train.strategy: ddp"
        found.append(
            Problem(
                f"{train.optimizer.name} {reason}",
                "train.optimizer",
                value=train.optimizer.name,
                valid=valid,
                hint=hint,
            )
        )
    if strategy.startswith("zero"):
        found += _zero(strategy, train)
    if strategy == "fsdp2" and train.precision in ("fp16", "fp8"):
        reason = {
            "fp16": "the loss scale has to be the same for all, and each process sees only its own part of the gradients",
            "fp8": "its layers keep scales beside their weights, which cannot be cut into shards",
        }[train.precision]
        found.append(
            Problem(f"not with fsdp2: {reason}", "train.precision", value=train.precision, valid=("fp32", "bf16"))
        )
    return found


def _zero(strategy: str, train: Train) -> Iterator[Problem]:
    if train.optimizer.name == "adagrad":
        reason = "not with DeepSpeed: it makes an Adagrad of its own, with one group for all weights"
        valid = tuple(sorted(ELEMENTWISE - {"adagrad"}))
        yield Problem(reason, "train.optimizer", value="adagrad", valid=valid, hint="or set train.strategy: fsdp2")
    if train.compile and strategy == "zero3":
        reason = "cannot see the weights that zero3 gathers around every layer"
        yield Problem(reason, "train.compile", value="true", hint="use zero2, fsdp2 or ddp, or leave it out")
    if train.precision == "fp8":
        reason = f"not with {strategy}: DeepSpeed casts by its own autocast, which knows no 8 bits"
        yield Problem(reason, "train.precision", value="fp8", valid=("fp32", "bf16", "fp16"))
    if getattr(train.strategy, "offload_optimizer", "none") == "nvme":
        reason = "no checkpoint could be written: it lies in files of DeepSpeed's own"
        yield Problem(reason, "train.strategy.offload_optimizer", value="nvme", valid=("none", "cpu"))
