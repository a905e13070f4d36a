"""`fsdp2`: ranks share weights, gradients and optimizer state (PyTorch's `fully_shard`, Zhao et al. 2023, arXiv 2304.11277).

PyTorch's own function and not Accelerate's plug-in, which silently runs plain DDP on a CPU; Accelerate starts the process
group and carries small things. Each weight is cut by its first dimension into as many runs of rows as there are ranks; a
layer's weights are gathered before it runs and freed afterwards, so the model never stands whole on any device.
What is gathered in 16 bits, and why accumulation reduces every micro-batch: docs/decisions/0006-strategies.md.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.utils._pytree import tree_leaves

from sft_dist.checkpoints.optimizer_state import Piece, SavedState, check_names, names_of
from sft_dist.engines.base import COLLECTIVE_TIMEOUT, NonFiniteGradient, Setup, copy_tensors, start_accelerator
from sft_dist.tuning.half_precision import rounded_layers, store_frozen_in_16_bits


class Fsdp2:
    model: nn.Module
    raw_model: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, setup: Setup) -> None:
        self.precision = setup.precision
        self.offload = setup.strategy.get("offload") == "cpu"
        self.reshard_after_forward = bool(setup.strategy.get("reshard_after_forward", True))
        on_gpu = torch.accelerator.is_available()
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        _start_group(world_size, on_gpu)
        self.accelerator = start_accelerator(setup)
        self.mesh = init_device_mesh(self.accelerator.device.type, (world_size,))

    def prepare(self, model: nn.Module, build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        weights = sum(1 for _ in model.parameters())
        # Of outputs that are views, whose hooks may be lost; `_gathers_before_backward` does not need them.
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(FSDPLinear")
        store_frozen_in_16_bits(model, self.precision)
        offload = CPUOffloadPolicy() if self.offload else OffloadPolicy()
        shard(model, self.mesh, self.reshard_after_forward, offload, self.precision)
        self.model = self.raw_model = model  # sharding changes the modules in place
        self._check(weights)
        self.optimizer = build_optimizer(model)
        # Kept, because after a forward pass without a backward the model shows gathered weights instead of these.
        self.names = names_of(model)

    def _check(self, weights: int) -> None:
        if not isinstance(self.model, FSDPModule):
            raise RuntimeError(f"the model should be an FSDPModule but is {type(self.model).__name__}")
        parameters = list(self.model.parameters())
        if len(parameters) != weights:
            raise RuntimeError(f"{weights} weights became {len(parameters)}: tied weights were sharded separately")
        if unsharded := [name for name, value in self.model.named_parameters() if not isinstance(value, DTensor)]:
            raise RuntimeError(f"{len(unsharded)} weights are not sharded, such as {unsharded[0]}")
        if self.mesh.size() != self.accelerator.num_processes:
            raise RuntimeError(
                f"weights are sharded across {self.mesh.size()} of {self.accelerator.num_processes} processes"
            )

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Does nothing: gradients are reduced after every micro-batch. To keep them for the last one, each rank would need room for
        all of them."""
        return contextlib.nullcontext()

    def autocast(self) -> AbstractContextManager[None]:
        # Without its cache, which would keep a copy in half precision of every weight that is gathered.
        enabled = self.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, clip_norm: float | None) -> float:
        shared = nn.utils.clip_grad_norm_(self.names, float("inf") if clip_norm is None else clip_norm)
        norm = shared.full_tensor() if isinstance(shared, DTensor) else shared
        if not torch.isfinite(norm):
            raise NonFiniteGradient(f"the gradient norm is {norm.item()}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.item()

    def discard_gradients(self) -> None:
        self.optimizer.zero_grad()

    def weights(self, names: set[str] | None = None) -> dict[str, Tensor] | None:
        """Gathers one weight after another, so that no rank ever holds more than its share and one whole weight."""
        self._free_gathered()

        def copy(value: Tensor) -> Tensor | None:
            full = value.full_tensor() if isinstance(value, DTensor) else value
            return full.detach().to("cpu", copy=True) if self.accelerator.is_main_process else None

        return copy_tensors(self.raw_model, names, copy)

    def pieces(self) -> Iterator[Piece]:
        """Yields this rank's rows of every state key; rank 0 also yields what is not per row, such as Adam's `step`."""
        for parameter, name in self.names.items():
            first, last = self._run(parameter)
            for state_key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, DTensor):
                    if last > first:
                        yield Piece(name, state_key, first, value.to_local().detach().to("cpu", copy=True).flatten())
                elif self.accelerator.is_main_process:
                    yield Piece(name, state_key, None, torch.as_tensor(value).detach().to("cpu", copy=True))

    def load(self, saved: SavedState) -> None:
        check_names(saved, set(self.names.values()))
        in_groups = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for number, parameter in enumerate(in_groups):
            name = self.names[parameter]
            tensors: dict[str, Tensor] = {
                state_key: self._read(saved, name, state_key, parameter) for state_key in saved.element_keys(name)
            }
            tensors |= {state_key: saved.full_value(name, state_key) for state_key in saved.whole_keys(name)}
            if tensors:
                state[number] = tensors
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _read(self, saved: SavedState, name: str, state_key: str, parameter: nn.Parameter) -> DTensor:
        """Returns this rank's rows, as the tensor that the optimizer works on."""
        assert isinstance(parameter, DTensor)
        mine = parameter.to_local()
        values = saved.read(name, state_key, *self._run(parameter)).view(mine.shape).to(mine.device)
        return DTensor.from_local(
            values, self.mesh, [Shard(0)], run_check=False, shape=parameter.shape, stride=parameter.stride()
        )

    def _run(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Returns the first element of this rank's rows, and the one after the last. Rows are cut as `torch.chunk` cuts them."""
        rows = parameter.shape[0]
        return rows_of(rows, self.mesh.size(), self.mesh.get_local_rank(), parameter.numel() // rows)

    def _free_gathered(self) -> None:
        """Frees weights that are still gathered after validation, which the model would show."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def rows_of(rows: int, ranks: int, rank: int, width: int) -> tuple[int, int]:
    """Returns elements [first, last) of a weight with `rows` rows of `width` elements that `rank` has: ceil(rows / ranks)
    rows each, the last ranks fewer or none."""
    rows_per_rank = -(-rows // ranks)
    return min(rank * rows_per_rank, rows) * width, min((rank + 1) * rows_per_rank, rows) * width


def shard(
    model: nn.Module, mesh: DeviceMesh, reshard_after_forward: bool, offload: OffloadPolicy, precision: str
) -> None:
    """Shards the weights: a unit for each transformer layer, in bf16 one more for its linear layers, and one for all else.
    Values stay as they are."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()
    # Autocast computes with these in bf16, weights, biases and their gradients: gathered so they give the same bits, at half
    # the bytes. Gradients are summed in fp32.
    in_bf16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    rounded = set(rounded_layers(model)) if precision == "bf16" else set()
    for layer in layers_of(model):
        linear: list[nn.Module] = [module for module in layer.modules() if module in rounded]
        if linear:
            fully_shard(
                linear,
                mesh=mesh,
                reshard_after_forward=reshard_after_forward,
                mp_policy=in_bf16,
                offload_policy=offload,
            )
            layer.register_forward_hook(_gathers_before_backward(linear[0]))
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward, offload_policy=offload)
    # The rest (embeddings, head) is needed until backward begins, so it stays.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, offload_policy=offload)


def _gathers_before_backward(linear: Any) -> Callable[[nn.Module, object, Any], None]:
    """Returns a forward hook for a layer, which makes its backward pass gather the unit of `linear`. That unit's own hooks stand on the
    outputs of its modules, and an operation in place on such an output (`x += y`) drops the hook: PyTorch would then compute with
    freed weights."""

    def gather(gradient: Tensor) -> None:
        linear.unshard()

    def hook(layer: nn.Module, inputs: object, outputs: Any) -> None:
        for output in tree_leaves(outputs):
            if torch.is_tensor(output) and output.requires_grad:
                output.register_hook(gather)

    return hook


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Returns the repeated layers of every stack of the model (an encoder and a decoder are two).

    transformers names the classes of layers that must not be divided, and with them some embeddings, whose weights may be
    tied to the head; so only what stands in a list counts, and nothing that shares a weight with the rest.
    """
    named = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    stacks: list[nn.ModuleList] = [
        module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    layers = [layer for stack in stacks for layer in stack if type(layer).__name__ in named]
    if not layers and stacks:
        longest = max(stacks, key=len)
        layers = list(longest)
    separate: list[nn.Module] = []
    for layer in dict.fromkeys(layers):
        if not any(layer is inner for outer in separate for inner in outer.modules()) and not _is_tied(layer, model):
            separate.append(layer)
    return separate


def _is_tied(layer: nn.Module, model: nn.Module) -> bool:
    own = set(layer.parameters())
    inside = set(layer.modules())
    return any(
        parameter in own
        for module in model.modules()
        if module not in inside
        for parameter in module.parameters(recurse=False)
    )


def _start_group(world_size: int, on_gpu: bool) -> None:
    """Starts the process group, on a GPU with both backends: what is offloaded is reduced on the CPU. One process is a group,
    too."""
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if world_size == 1:
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
