"""`zero1`, `zero2`, `zero3`: DeepSpeed's ZeRO (arXiv 1910.02054). Ranks share the optimizer's state, then the gradients,
then the weights.

DeepSpeed is driven directly, not through Accelerate's plugin; why, and which of its features are kept out, stands in
docs/decisions/0006-strategies.md. Weights are fp32 under every precision, as with the other strategies.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sft_dist.checkpoints.optimizer_state import Piece, SavedState, check_names, names_of
from sft_dist.engines.base import COLLECTIVE_TIMEOUT, NonFiniteGradient, Setup, copy_tensors, start_accelerator
from sft_dist.engines.deepspeed_config import AUTOCAST, deepspeed_config, zero_stage
from sft_dist.recipe.errors import Problem, UserError


class Zero:
    model: Any  # DeepSpeedEngine; it has no types
    raw_model: nn.Module
    optimizer: torch.optim.Optimizer
    names: dict[Any, str]  # trained weight, to which DeepSpeed adds attributes -> name

    def __init__(self, setup: Setup) -> None:
        self.precision = setup.precision
        self.stage = zero_stage(setup.strategy)
        self.config = deepspeed_config(setup.strategy, setup.precision)
        self.accelerator = start_accelerator(setup)
        on_gpu = self.accelerator.device.type != "cpu"
        if not dist.is_initialized():  # a single process, which DeepSpeed wants to be a group, too
            backend, store = "nccl" if on_gpu else "gloo", dist.HashStore()
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
        _import_deepspeed(on_gpu)
        self.loss_scale = LossScale() if setup.precision == "fp16" else None
        self.has_gradients = False

    def prepare(self, model: nn.Module, build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        import deepspeed

        self.raw_model = model
        # Before sharding: a partitioned weight has no shape, by which the optimizer's groups are made.
        self.optimizer = build_optimizer(model)
        self.names = names_of(model)
        if self.stage == 3:
            # One weight at a time, so that the whole model is never on the device.
            deepspeed.zero.Init(module=model, config_dict_or_path=self.config, dtype=torch.float32)
            for buffer in model.buffers():
                buffer.data = buffer.data.to(self.accelerator.device)
        self.model, *_ = deepspeed.initialize(
            model=model, optimizer=self.optimizer, config=self.config, dist_init_required=False
        )
        self.zero = self.model.optimizer
        # It makes a group of its own of all ranks, with torch's default.
        dist.distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT, self.zero.dp_process_group)
        if self.loss_scale is not None:
            # DeepSpeed 0.19.8 clips before it takes out its autocast scaler's scale and never lowers that scale after an
            # overflow, so the scale is ours, handed over where DeepSpeed expects one from outside.
            self.zero.torch_autocast_gradscaler = None
            self.zero.override_loss_scale(self.loss_scale.scale)
        self._check_wiring()

    def _check_wiring(self) -> None:
        """Raises RuntimeError when DeepSpeed runs something else than what was asked for."""
        wiring = {
            "ZeRO stage": (self.model.zero_optimization_stage(), self.stage),
            "number of ranks": (self.model.dp_world_size, self.accelerator.num_processes),
            "optimizer": (self.zero.optimizer, self.optimizer),
            "dtype of the weights": (self.zero.dtype, torch.float32),
            "number of elements per rank": self._shares(),
        }
        for fact, (is_, should_be) in wiring.items():
            if is_ != should_be:
                raise RuntimeError(f"DeepSpeed: the {fact} should be {should_be} but is {is_}")

    def _shares(self) -> tuple[int, int]:
        """Returns the number of elements that a rank updates, as DeepSpeed has it and as it should be; both with padding."""
        world = self.accelerator.num_processes
        if self.stage == 3:
            share = sum(-(-parameter.ds_numel // world) for parameter in self.names)
            return sum(self.zero.fp16_partitioned_groups_flat_numel), share
        return sum(flat.numel() for flat in self._flat()), sum(
            len(flat) for flat in self.zero.bit16_groups_flat
        ) // world

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        self.model.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def autocast(self) -> AbstractContextManager[None]:
        """Returns the autocast that DeepSpeed enters around the model itself. No cache with stage 3: it would hold every
        gathered weight."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        enabled = self.precision in AUTOCAST
        return torch.autocast(self.accelerator.device.type, dtype, enabled=enabled, cache_enabled=self.stage < 3)

    def backward(self, loss: Tensor) -> None:
        self.has_gradients = True
        self.model.backward(loss, scale_wrt_gas=False)

    def step(self, clip_norm: float | None) -> float:
        self.zero.clip_grad = clip_norm or 0.0
        self.model.step()
        self.has_gradients = False
        norm = float(self.model.get_global_grad_norm())
        if self.loss_scale is not None:
            self.zero.override_loss_scale(self.loss_scale.update(overflow=self.zero.overflow))
        elif self.zero.overflow:
            raise NonFiniteGradient("the gradient norm is NaN or infinite")
        return norm

    def discard_gradients(self) -> None:
        """Empties the gradients, whose buffers differ by stage and offload. DeepSpeed empties them itself on a NaN or
        infinite norm, which it marks by -1."""
        if not self.has_gradients:
            return
        bad: Any
        if self.stage == 3:
            name, bad = "_get_norm_groups", [torch.tensor(-1.0, device=self.accelerator.device)]
        else:
            name, bad = "scaled_global_norm", torch.tensor(-1.0, device=self.accelerator.device)
        setattr(self.zero, name, lambda: bad)
        try:
            self.model.step()
        finally:
            delattr(self.zero, name)
        self.has_gradients = False

    # ── weights ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def weights(self, names: set[str] | None = None) -> dict[str, Tensor] | None:
        import deepspeed

        def copy(value: Tensor) -> Tensor | None:
            with deepspeed.zero.GatheredParameters([value]):  # does nothing to what is not partitioned
                return value.detach().to("cpu", copy=True) if self.accelerator.is_main_process else None

        return copy_tensors(self.raw_model, names, copy)

    # ── optimizer state ─────────────────────────────────────────────────────────────────────────────────────────────
    def pieces(self) -> Iterator[Piece]:
        rank = self.accelerator.process_index
        for run in self._runs():
            for state_key, value in self.optimizer.state.get(run.flat, {}).items():
                if not torch.is_tensor(value) or value.shape != run.flat.shape:
                    if rank == 0:
                        yield Piece(run.name, state_key, None, torch.as_tensor(value).detach().to("cpu", copy=True))
                elif run.length:
                    values = value.narrow(0, run.start, run.length)
                    yield Piece(run.name, state_key, run.first, values.detach().to("cpu", copy=True))
        if self.loss_scale is not None and rank == 0:
            yield Piece("loss scale", "scale", None, torch.tensor(self.loss_scale.scale))
            yield Piece("loss scale", "growth", None, torch.tensor(self.loss_scale.good_steps))

    def load(self, saved: SavedState) -> None:
        check_names(saved, set(self.names.values()))
        counts_on_device = self.optimizer.defaults.get("fused") or self.optimizer.defaults.get("capturable")
        for run in self._runs():
            state = self.optimizer.state[run.flat]
            for state_key in saved.whole_keys(run.name):
                value = saved.full_value(run.name, state_key)
                state[state_key] = value.to(run.flat.device) if counts_on_device else value
            for state_key in saved.element_keys(run.name):
                if state_key not in state:
                    state[state_key] = torch.zeros_like(run.flat, requires_grad=False)
                if run.length:
                    values = saved.read(run.name, state_key, run.first, run.first + run.length)
                    state[state_key].narrow(0, run.start, run.length).copy_(values)
        if self.loss_scale is not None and "loss scale" in saved.names():
            self.loss_scale.scale = saved.full_value("loss scale", "scale").item()
            self.loss_scale.good_steps = int(saved.full_value("loss scale", "growth").item())
            self.zero.override_loss_scale(self.loss_scale.scale)

    def _flat(self) -> list[Tensor]:
        """Returns what the optimizer takes for its parameters: a rank's part of a group of weights, 1-D and padded."""
        flat: list[Tensor] = (
            self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups
        )
        return flat

    def _runs(self) -> Iterator[Run]:
        """Returns where this rank's elements of every trained weight are; all weights on every rank, in the same order."""
        rank = self.accelerator.process_index
        if self.stage == 3:
            for parameter, name in self.names.items():
                number, start, padded = self.zero.grad_position[self.zero.get_param_id(parameter)]
                first = min(rank * padded, parameter.ds_numel)
                yield Run(name, self._flat()[number], start, first, min(padded, parameter.ds_numel - first))
            return
        for number, group in enumerate(self.zero.bit16_groups):
            for parameter in group:
                name, flat, mapping = self.names[parameter], self._flat()[number], parameter._hp_mapping
                if mapping is None:
                    yield Run(name, flat, 0, 0, 0)
                else:
                    optimizer_fragment, weight_fragment = mapping.hp_fragment_address, mapping.lp_fragment_address
                    yield Run(name, flat, optimizer_fragment.start, weight_fragment.start, weight_fragment.numel)


@dataclass(frozen=True)
class Run:
    """Elements `first` to `first + length` of a weight are elements `start` to `start + length` of `flat`."""

    name: str
    flat: Tensor
    start: int
    first: int
    length: int


@dataclass
class LossScale:
    """The factor of fp16's loss, by the rule of torch.amp.GradScaler: half after an overflow, double after
    2000 steps without one."""

    scale: float = 65536.0
    good_steps: int = 0

    def update(self, overflow: bool) -> float:
        self.good_steps = 0 if overflow else self.good_steps + 1
        if overflow:
            self.scale /= 2
        elif self.good_steps == 2000:
            self.scale, self.good_steps = self.scale * 2, 0
        return self.scale


def _import_deepspeed(on_gpu: bool) -> None:
    """Imports DeepSpeed, with what it reads while it is imported. Raises UserError when it is not installed."""
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")
    # It calls collectives by the names they had before torch 2.13, thousands of times.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    try:
        import deepspeed.ops
        from deepspeed.utils import logger
    except ImportError as error:
        problem = Problem(f"DeepSpeed cannot be imported: {error}", path="train.strategy", hint="pip install deepspeed")
        raise UserError(problem) from error
    logger.setLevel(logging.ERROR)
    # On CPU it would build a C++ extension for reductions in shared memory, and fail without a compiler; gloo does them.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
