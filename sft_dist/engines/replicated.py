"""`single` and `ddp`: every rank holds the whole model (PyTorch's DistributedDataParallel, by Accelerate)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from accelerate.utils import AORecipeKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sft_dist.checkpoints.optimizer_state import Piece, SavedState, load_pieces, optimizer_pieces
from sft_dist.engines.base import NonFiniteGradient, Setup, copy_tensors, start_accelerator
from sft_dist.engines.precision import autocast
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.tuning.half_precision import store_frozen_in_16_bits


class Replicated:
    model: nn.Module
    raw_model: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, setup: Setup) -> None:
        self.precision = setup.precision
        # fp8 alone changes the model itself.
        eight_bits = (
            {"mixed_precision": "fp8", "kwargs_handlers": [AORecipeKwargs()]} if setup.precision == "fp8" else {}
        )
        self.accelerator = start_accelerator(setup, **eight_bits)
        if setup.precision == "fp8" and self.accelerator.device.type == "cuda":
            require_eight_bits(torch.cuda.get_device_capability(), torch.cuda.get_device_name())
        self.scaler = torch.amp.GradScaler(self.accelerator.device.type, enabled=setup.precision == "fp16")

    def prepare(self, model: nn.Module, build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        self.raw_model = model
        store_frozen_in_16_bits(model, self.precision)
        self.model = self.accelerator.prepare(model)
        self.optimizer = build_optimizer(model)
        if self.precision == "fp8":
            check_eight_bits(model)
        if self.accelerator.num_processes > 1 and not isinstance(self.model, DistributedDataParallel):
            raise RuntimeError(f"the model should be a DistributedDataParallel but is {type(self.model).__name__}")

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.accelerator.device, self.precision)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, clip_norm: float | None) -> float:
        self.scaler.unscale_(self.optimizer)
        trained = [parameter for parameter in self.raw_model.parameters() if parameter.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, float("inf") if clip_norm is None else clip_norm)
        # With fp16 an infinite gradient is how the loss scale is found: that step is skipped and the scale lowered.
        if not torch.isfinite(norm) and not self.scaler.is_enabled():
            raise NonFiniteGradient(f"the gradient norm is {norm.item()}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm.item()

    def discard_gradients(self) -> None:
        self.optimizer.zero_grad()

    def weights(self, names: set[str] | None = None) -> dict[str, Tensor] | None:
        if not self.accelerator.is_main_process:
            return None
        return copy_tensors(self.raw_model, names, lambda value: value.detach().to("cpu", copy=True))

    def pieces(self) -> Iterator[Piece]:
        """Yields the state of every n-th weight: every rank has everything, so they take turns."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        yield from optimizer_pieces(self.optimizer, self.raw_model, lambda number: number % world == rank)
        if self.scaler.is_enabled() and rank == 0:
            yield Piece("loss scale", "scale", None, torch.tensor(self.scaler.get_scale()))
            yield Piece("loss scale", "growth", None, torch.tensor(self.scaler.state_dict()["_growth_tracker"]))

    def load(self, saved: SavedState) -> None:
        load_pieces(self.optimizer, self.raw_model, saved)
        if self.scaler.is_enabled() and "loss scale" in saved.names():
            state = self.scaler.state_dict()
            state["scale"] = saved.full_value("loss scale", "scale").item()
            state["_growth_tracker"] = int(saved.full_value("loss scale", "growth").item())
            self.scaler.load_state_dict(state)


def require_eight_bits(capability: tuple[int, int], name: str) -> None:
    """Raises UserError for a GPU whose first matrix product in 8 bits would fail: Ada (8.9) and Hopper brought them."""
    if capability < (8, 9):
        major, minor = capability
        message = f"{name} does not support fp8: its compute capability is {major}.{minor}, and fp8 needs 8.9"
        raise UserError(Problem(message, "train.precision", value="fp8", valid=("bf16", "fp16", "fp32")))


def check_eight_bits(model: nn.Module) -> None:
    """Raises UserError when no layer computes in 8 bits. torchao skips the first, the last, and those whose sides are no
    multiples of 16, and says nothing when none is left."""
    if not any(type(module).__name__ == "Float8Linear" for module in model.modules()):
        message = f"no layer of {type(model).__name__} can compute in fp8: both dimensions must be multiples of 16"
        raise UserError(Problem(message, "train.precision", value="fp8", valid=("bf16", "fp16", "fp32")))
