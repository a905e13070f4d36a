"""What an engine is: the one place that knows how ranks share the work while a run trains.

A strategy's row in `recipe/strategies.py` names its engine; `launch/strategy.py` starts the processes.
The loop, the checkpoints and the tasks know strategies only through this protocol.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from sft_dist.checkpoints.optimizer_state import Piece, SavedState

# Hangs are found, and who hangs is named, by the heartbeats (`recipe/watch.py`), after ten times resources.hang_timeout (5 h
# when it is not set) while rank 0 verifies or writes a checkpoint and the others wait for it. NCCL would end such a run after
# 10 minutes. Not forever: a rank on a node that is cut off holds the run's lock for as long.
COLLECTIVE_TIMEOUT = timedelta(hours=6)


@dataclass(frozen=True)
class Setup:
    """The settings of an engine, before there is a model."""

    precision: str  # fp32 | bf16 | fp16 | fp8
    project_dir: str
    strategy: dict[str, object]  # the recipe's options of the strategy, such as offload_optimizer


class Engine(Protocol):
    accelerator: Accelerator  # ranks, device, gather and reduce of small things, trackers
    model: nn.Module  # as wrapped; every rank must call it equally often, also without gradients
    raw_model: nn.Module  # the model itself: a PreTrainedModel or a PeftModel
    optimizer: torch.optim.Optimizer  # torch's own: the schedule changes the lr of its groups

    def __init__(self, setup: Setup) -> None:
        """Starts the process group and checks that it is what was asked for. Raises UserError and RuntimeError."""

    def prepare(self, model: nn.Module, build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        """Places the model on the device, shards it and makes the optimizer; checks that the wrapper is the right one.

        The model comes with its final weights, on the CPU, the same on every rank. `build_optimizer` may be called
        before or after sharing out; it reads `named_parameters()` and must see their own names.
        """

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Wraps forward and backward of one micro-batch; gradients are exchanged in the step's last one."""

    def autocast(self) -> AbstractContextManager[None]:
        """Wraps every forward pass, with and without gradients."""

    def backward(self, loss: Tensor) -> None:
        """Adds gradients up over a step's micro-batches; they are averaged (not summed) over ranks."""

    def step(self, clip_norm: float | None) -> float:
        """Clips, updates and clears the gradients. Returns the global gradient norm before clipping.

        Raises NonFiniteGradient when the norm is not finite; then no weight has been changed where the strategy can tell in time.
        """

    def discard_gradients(self) -> None:
        """Discards this step's gradients. Raises NotImplementedError where that cannot be done (refused at plan time)."""

    def weights(self, names: set[str] | None = None) -> dict[str, Tensor] | None:
        """Returns full weights and buffers of `raw_model.state_dict()`, in fp32 as they are trained, copied to the CPU, under the
        same names; only those in `names`, if given. On rank 0; None elsewhere. Every rank must call it."""

    def pieces(self) -> Iterator[Piece]:
        """Yields this rank's share of the optimizer state, copied to the CPU. Over all ranks each element comes exactly once."""

    def load(self, saved: SavedState) -> None:
        """Loads a saved state, whichever strategy and number of ranks wrote it. Raises ValueError when it does not fit."""


def start_accelerator(setup: Setup, **options: Any) -> Accelerator:
    """Starts Accelerate and checks the process group: set up wrongly, it runs one process instead of several, silently.

    Autocast and loss scaling are the engines', the same way for every strategy, so its mixed precision is off.
    """
    handlers = [InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT), *options.pop("kwargs_handlers", ())]
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        project_dir=setup.project_dir,
        kwargs_handlers=handlers,
        **{"mixed_precision": "no", **options},
    )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world_size:
        raise RuntimeError(
            f"{world_size} processes were started, but Accelerate runs {accelerator.num_processes} "
            f"({accelerator.distributed_type})"
        )
    return accelerator


def require_gpu(available: bool) -> None:
    """Raises RuntimeError where a run that was planned for GPUs finds none: on one node without a driver it would train on
    the CPU, and the other nodes would wait for it. `sft_dist.run.causes` takes that error for a fault of the host."""
    if not available:
        raise RuntimeError(
            f"the run was planned for GPUs, but torch {torch.__version__} finds none on {socket.gethostname()}: the driver "
            "does not respond, the GPU has fallen off the bus, or torch is built without CUDA; run nvidia-smi there"
        )


def broadcast_buffers(model: nn.Module) -> None:
    """Copies rank 0's floating-point buffers to every rank: call this before validating and before saving. They are the ones
    that are saved, and of the strategies only `ddp` keeps those alike that a forward pass changes, such as the vectors of spectral
    norms. Those of batch norms are alike already (`training/batch_norms.py`). Every rank must call it."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                values = buffer.detach().contiguous()
                dist.broadcast(values, src=0)
                buffer.detach().copy_(values)


class NonFiniteGradient(RuntimeError):
    """A gradient norm that is NaN or infinite."""


def copy_tensors(
    model: nn.Module, names: set[str] | None, copy: Callable[[Tensor], Tensor | None]
) -> dict[str, Tensor] | None:
    """Returns `copy` of each named weight and buffer of `model.state_dict()`, one after another; tied weights are copied once. None
    where `copy` returns None, which is on all ranks but one."""
    copies: dict[int, Tensor | None] = {}
    named_copies: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if names is None or name in names:
            if id(value) not in copies:
                copies[id(value)] = copy(value)
            if (copied := copies[id(value)]) is not None:
                named_copies[name] = copied
    return named_copies or None
