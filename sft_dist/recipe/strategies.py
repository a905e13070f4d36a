"""How the processes of a run can share the work: one row a strategy, and everything that depends on the strategy reads it.

`launch.strategy` starts the processes and chooses for `auto`, `launch.gpu_memory` estimates, the row's engine trains. To add a
strategy, add a row, and an engine if none serves. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

from sft_dist.recipe.errors import Problem
from sft_dist.recipe.optimizers import ELEMENTWISE
from sft_dist.recipe.schema import (
    FreezeTuning,
    Fsdp2Strategy,
    PlainStrategy,
    Recipe,
    Train,
    Tuning,
    Zero3Strategy,
    ZeroStrategy,
)

PARAMETERS, GRADIENTS, OPTIMIZER = "parameters", "gradients", "optimizer"
PRECISIONS: tuple[str, ...] = get_args(Train.model_fields["precision"].annotation)
GRADUAL = "freeze with unfreeze_every"  # a kind of tuning, in `refused_tunings`


@dataclass(frozen=True)
class Strategy:
    """The facts of one strategy. `refused_*` maps a value of that setting to the reason why it does not work."""

    name: str
    settings: type[PlainStrategy | ZeroStrategy | Zero3Strategy | Fsdp2Strategy]  # its section of the recipe
    engine: str  # module:class, what the ranks do
    min_processes: int = 1
    max_processes: int | None = None
    shards: frozenset[str] = frozenset()  # of which each process has only its share
    buffered: str = ""  # of which a process has a second copy, 4 bytes an element
    offload_options: tuple[str, ...] = ()  # settings that move what is sharded from the GPU to `cpu`
    offload_needs_gpu: bool = False
    packages: tuple[tuple[str, str], ...] = ()  # (module, what to install)
    env_on_cpu: Mapping[str, str] = field(default_factory=dict)
    has_16_bit_layers: bool = False  # frozen weights of layers are stored in 16 bits, sharded layers gathered so
    next_strategy: str = ""  # shards more, when memory is out
    refused_tunings: Mapping[str, str] = field(default_factory=dict)
    refused_precisions: Mapping[str, str] = field(default_factory=dict)
    refused_optimizers: Mapping[str, str] = field(default_factory=dict)
    refused_compile: str = ""
    refused_offloads: Mapping[str, str] = field(default_factory=dict)  # values of `offload_optimizer`


_PLAIN = Strategy(
    "", PlainStrategy, "sft_dist.engines.replicated:Replicated", has_16_bit_layers=True, next_strategy="fsdp2"
)
_NO_4_BIT_SHARDS = {"qlora": "4-bit weights cannot be sharded and trained in fp32"}
_ZERO = Strategy(
    name="",
    settings=ZeroStrategy,
    engine="sft_dist.engines.zero:Zero",
    buffered=OPTIMIZER,  # the optimizer works on a copy of its share of the weights
    offload_options=("offload_optimizer",),
    packages=(("deepspeed", "sft-dist[deepspeed]"),),
    env_on_cpu={"DS_ACCELERATOR": "cpu"},  # without it DeepSpeed looks for a GPU, and warns that it found none
    refused_tunings={
        GRADUAL: "DeepSpeed updates all trained weights as one flat tensor, so weights that are still frozen would gather "
        "optimizer state and count in the gradient norm"
    },
    refused_precisions={"fp8": "DeepSpeed casts by its own autocast, which has no 8-bit types"},
    refused_optimizers={"adagrad": "DeepSpeed replaces Adagrad by its own, with one group for all weights"},
    refused_offloads={"nvme": "no checkpoint could be written: DeepSpeed keeps the state in files of its own"},
)
_ROWS = (
    replace(_PLAIN, name="single", max_processes=1),
    replace(_PLAIN, name="ddp", min_processes=2, buffered=GRADIENTS),
    replace(_ZERO, name="zero1", shards=frozenset([OPTIMIZER]), next_strategy="zero2"),
    replace(_ZERO, name="zero2", shards=frozenset([OPTIMIZER, GRADIENTS]), next_strategy="zero3"),
    replace(
        _ZERO,
        name="zero3",
        settings=Zero3Strategy,
        shards=frozenset([OPTIMIZER, GRADIENTS, PARAMETERS]),
        offload_options=("offload_optimizer", "offload_parameters"),
        refused_tunings={**_ZERO.refused_tunings, **_NO_4_BIT_SHARDS},
        refused_compile="cannot see the weights that zero3 gathers around every layer",
    ),
    Strategy(
        "fsdp2",
        Fsdp2Strategy,
        "sft_dist.engines.fsdp2:Fsdp2",
        shards=frozenset([OPTIMIZER, GRADIENTS, PARAMETERS]),
        offload_options=("offload",),
        offload_needs_gpu=True,
        has_16_bit_layers=True,
        refused_tunings=_NO_4_BIT_SHARDS,
        refused_precisions={
            "fp16": "the loss scale has to be the same on all ranks, and each rank sees only its own part of the gradients",
            "fp8": "its layers keep scales beside their weights, which cannot be sharded",
        },
    ),
)
STRATEGIES = {row.name: row for row in _ROWS}
UNPLANNED = STRATEGIES["ddp"]  # what `auto` means on a rank whose run has no plan: the whole model on every rank


def refusals(strategy: str, recipe: Recipe) -> list[Problem]:
    """Returns every setting of the recipe that the strategy cannot work with, with the reason. `auto` refuses nothing."""
    row = STRATEGIES.get(strategy)
    return (
        []
        if row is None
        else [*_tuning(row, recipe.tuning), *_optimizer(row, recipe.train), *_settings(row, recipe.train)]
    )


def tuning_refusal(strategy: str, tuning: Tuning) -> str | None:
    """Returns why a tuning does not work with a strategy, or None when it does."""
    gradual = isinstance(tuning, FreezeTuning) and tuning.unfreeze_every is not None
    return STRATEGIES[strategy].refused_tunings.get(GRADUAL if gradual else tuning.method)


def _tuning(row: Strategy, tuning: Tuning) -> Iterator[Problem]:
    if reason := tuning_refusal(row.name, tuning):
        valid = ("auto", *(name for name in STRATEGIES if tuning_refusal(name, tuning) is None))
        yield Problem(f"not with tuning: {tuning.method}: {reason}", "train.strategy", value=row.name, valid=valid)


def _optimizer(row: Strategy, train: Train) -> Iterator[Problem]:
    name = train.optimizer.name
    if row.shards and name not in ELEMENTWISE:
        reason = f"{name} updates a weight as a whole, and with {row.name} a process has only part of it"
        valid, hint = tuple(sorted(ELEMENTWISE)), "or set train.strategy: ddp"
        yield Problem(reason, "train.optimizer", value=name, valid=valid, hint=hint)
    if reason := row.refused_optimizers.get(name, ""):
        valid, hint = tuple(sorted(ELEMENTWISE - {name})), "or set train.strategy: fsdp2"
        yield Problem(f"not with {row.name}: {reason}", "train.optimizer", value=name, valid=valid, hint=hint)


def _settings(row: Strategy, train: Train) -> Iterator[Problem]:
    if train.compile and row.refused_compile:
        hint = "use zero2, fsdp2 or ddp, or remove it"
        yield Problem(row.refused_compile, "train.compile", value="true", hint=hint)
    if reason := row.refused_precisions.get(train.precision):
        valid = tuple(name for name in PRECISIONS if name not in row.refused_precisions)
        yield Problem(f"not with {row.name}: {reason}", "train.precision", value=train.precision, valid=valid)
    device = getattr(train.strategy, "offload_optimizer", "none")
    if reason := row.refused_offloads.get(device):
        valid = ("none", "cpu")
        yield Problem(reason, "train.strategy.offload_optimizer", value=device, valid=valid)
