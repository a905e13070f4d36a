"""What a recipe needs of the machine that trains: installed packages, and a GPU. Torch-free, and nothing is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache

from sft_dist.recipe.errors import Problem
from sft_dist.recipe.optimizers import NAMED_OPTIMIZERS
from sft_dist.recipe.schema import NamedOptimizer, QloraTuning, Recipe
from sft_dist.recipe.strategies import STRATEGIES
from sft_dist.recipe.tracking import TRACKER_PACKAGES

FLASH_ATTENTION = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}


@cache
def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


def missing_packages(recipe: Recipe) -> list[Problem]:
    """Returns the settings whose package is not installed."""
    return [
        Problem(
            f"{setting} needs a package that is not installed", path, value=setting, hint=f"pip install '{package}'"
        )
        for path, setting, module, package in _packages(recipe)
        if not is_installed(module)
    ]


def _packages(recipe: Recipe) -> Iterator[tuple[str, str, str, str]]:
    """(key path, value, module, what to install)."""
    for module, package in (*recipe.task.packages, *recipe.task.kind.packages):
        yield "task.type", recipe.task.type, module, package
    if recipe.data.augment.image is not None:
        yield "data.augment.image", "it", "PIL", "sft-dist[vision]"
    if recipe.data.clean.near_duplicates is not None:
        yield "data.clean.near_duplicates", "it", "datasketch", "sft-dist[check]"
    optimizer, attention = recipe.train.optimizer, recipe.model.attention
    if isinstance(optimizer, NamedOptimizer) and (needs := NAMED_OPTIMIZERS[optimizer.name]).module:
        yield "train.optimizer", optimizer.name, needs.module, needs.package
    if attention in FLASH_ATTENTION:
        yield "model.attention", str(attention), *FLASH_ATTENTION[str(attention)]
    if recipe.train.precision == "fp8":
        yield "train.precision", "fp8", "torchao", "torchao"
    for tracker in recipe.train.tracking:
        yield "train.tracking", tracker.name, *TRACKER_PACKAGES[tracker.name]
    if recipe.evaluate.lm_eval is not None:
        yield "evaluate.lm_eval", "it", "lm_eval", "sft-dist[lm-eval]"
    if recipe.train.liger:
        yield "train.liger", "true", "liger_kernel", "liger-kernel"
    if isinstance(recipe.tuning, QloraTuning):
        yield "tuning.method", "qlora", "bitsandbytes", "bitsandbytes"
    strategy = recipe.train.strategy.name
    if strategy in STRATEGIES:
        for module, package in STRATEGIES[strategy].packages:
            yield "train.strategy", strategy, module, package


def needs_gpu(recipe: Recipe) -> list[Problem]:
    """Returns the settings that only work on a GPU, for a machine without one."""
    optimizer, attention = recipe.train.optimizer, recipe.model.attention
    problems = []
    if isinstance(optimizer, NamedOptimizer) and NAMED_OPTIMIZERS[optimizer.name].gpu:
        hint = f"such as {optimizer.name.removeprefix('paged_').replace('adamw_32bit', 'adamw').replace('mix_32bit', 'mix')}"
        problems.append(
            Problem(
                "paged optimizers need a GPU; none was found",
                "train.optimizer",
                value=optimizer.name,
                hint=hint,
            )
        )
    if attention is not None and attention not in ("eager", "sdpa"):
        valid = ("eager", "sdpa")
        problems.append(
            Problem("training with it needs a GPU; none was found", "model.attention", value=attention, valid=valid)
        )
    if isinstance(recipe.tuning, QloraTuning):
        message = "4-bit quantization needs a GPU; none was found"
        problems.append(Problem(message, "tuning.method", value="qlora", hint="use tuning: lora"))
    if recipe.train.liger:
        problems.append(Problem("Liger kernels need a GPU; none was found", "train.liger", value="true"))
    return [*problems, *_precision(recipe), *_offload(recipe)]


def _precision(recipe: Recipe) -> Iterator[Problem]:
    reasons = {
        "fp16": "its loss scaling needs a GPU; none was found; bf16 works on a CPU",
        "fp8": "it needs a GPU with 8-bit matrix products; none was found; bf16 works on a CPU",
    }
    if reason := reasons.get(precision := recipe.train.precision):
        yield Problem(reason, "train.precision", value=precision, valid=("fp32", "bf16"))


def _offload(recipe: Recipe) -> Iterator[Problem]:
    strategy = recipe.train.strategy
    for key, value in strategy.model_dump(exclude={"name"}).items():
        if value == "nvme":
            hint = "set it to none, or remove it"
            yield Problem(
                "offloading to disk needs a GPU; none was found",
                f"train.strategy.{key}",
                value=value,
                valid=("none", "cpu"),
                hint=hint,
            )
    row = STRATEGIES.get(strategy.name)
    for option in row.offload_options if row and row.offload_needs_gpu else ():
        if getattr(strategy, option) == "cpu":
            hint = "remove it: without a GPU everything is in the machine's memory"
            path = f"train.strategy.{option}"
            yield Problem("has no effect on a CPU", path, value="cpu", valid=("none",), hint=hint)
