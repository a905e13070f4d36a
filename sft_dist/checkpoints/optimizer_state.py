"""Optimizer state on disk: pieces of tensors, written by any number of ranks under any strategy, read by any other.

Every strategy cuts a weight into contiguous runs of its elements in row-major order (ZeRO into flat partitions, FSDP2
into rows, DDP not at all), so a piece is (weight, state key, first element, values). Each rank writes its own file, without
talking to the others; a reader asks for the elements it needs and gets them from whichever files have them. So a run can
resume with another number of ranks and another strategy, and nothing is converted.

    state/rank-00000.safetensors    `<weight>/<state key>@<first element>`: 1-D
                                    `<weight>/<state key>`: whole, for what does not go with the elements (Adam's step)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """`values`: 1-D from element `first` on; or a whole tensor of any shape when `first` is None."""

    name: str  # of the weight, as in `named_parameters()` of the raw model
    state_key: str  # exp_avg, momentum_buffer, step, ...
    first: int | None
    values: Tensor

    @property
    def key(self) -> str:
        return f"{self.name}/{self.state_key}" + ("" if self.first is None else f"@{self.first}")


def write_pieces(pieces: Iterable[Piece], folder: Path, rank: int) -> Path:
    """Writes this rank's file in `folder`, which is made when missing, but not its parents. Copies nothing: the values are
    written from where they are in memory."""
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"rank-{rank:05d}.safetensors"
    save_file({piece.key: piece.values for piece in pieces}, path)
    return path


class SavedState:
    """Reads `folder`; files stay open (and unread but for what is asked) until it is closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._runs: dict[tuple[str, str], list[tuple[int, int, object]]] = {}  # first, last + 1, file
        self._full_values: dict[tuple[str, str], object] = {}
        for path in sorted(folder.glob("rank-*.safetensors")):
            file = self._stack.enter_context(safe_open(path, "pt"))
            for key in file.keys():  # noqa: SIM118
                name, state_key, first = split_key(key)
                if first is None:
                    self._full_values[name, state_key] = file
                else:
                    length = file.get_slice(key).get_shape()[0]
                    self._runs.setdefault((name, state_key), []).append((first, first + length, file))
        for runs in self._runs.values():
            runs.sort(key=lambda run: run[:2])

    def __enter__(self) -> SavedState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def names(self) -> set[str]:
        return {name for name, _ in (*self._runs, *self._full_values)}

    def element_keys(self, name: str) -> set[str]:
        """Returns the state keys with one value per element, which can be read in part."""
        return {state_key for owner, state_key in self._runs if owner == name}

    def whole_keys(self, name: str) -> set[str]:
        return {state_key for owner, state_key in self._full_values if owner == name}

    def full_value(self, name: str, state_key: str) -> Tensor:
        """Returns a whole value. Raises ValueError when it is in no file."""
        if (name, state_key) not in self._full_values:
            raise ValueError(f"{self.folder}: {name}/{state_key} is in none of the files")
        return self._full_values[name, state_key].get_tensor(f"{name}/{state_key}")  # type: ignore[attr-defined]

    def read(self, name: str, state_key: str, first: int, last: int) -> Tensor:
        """Returns elements `first` to `last` - 1, 1-D. Raises ValueError when some are in no file."""
        parts = []
        at = first
        for start, end, file in self._runs.get((name, state_key), ()):
            if start <= at < end and at < last:
                until = min(end, last)
                piece = file.get_slice(f"{name}/{state_key}@{start}")  # type: ignore[attr-defined]
                parts.append(piece[at - start : until - start])
                at = until
        if at < last:
            raise ValueError(f"{self.folder}: element {at} of {name}/{state_key} is in none of the files")
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)


def split_key(key: str) -> tuple[str, str, int | None]:
    name, _, state_key = key.rpartition("/")
    state_key, at, first = state_key.partition("@")
    return name, state_key, int(first) if at else None


# ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def names_of(model: nn.Module) -> dict[nn.Parameter, str]:
    """Returns trained weight -> its name, which is the same under every strategy."""
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


def optimizer_pieces(
    optimizer: torch.optim.Optimizer, model: nn.Module, mine: Callable[[int], bool]
) -> Iterator[Piece]:
    """Yields the state of the weights whose number in the model is `mine`, copied to the CPU.

    A value that is no tensor says so in its key: `step:int`.
    """
    for number, (parameter, name) in enumerate(names_of(model).items()):
        if mine(number):
            for state_key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    copy = value.detach().to("cpu", copy=True).contiguous()
                    elementwise = copy.shape == parameter.shape and copy.ndim > 0
                    yield (
                        Piece(name, state_key, 0, copy.flatten()) if elementwise else Piece(name, state_key, None, copy)
                    )
                else:
                    yield Piece(name, f"{state_key}:{type(value).__name__}", None, _as_tensor(value))


def load_pieces(optimizer: torch.optim.Optimizer, model: nn.Module, saved: SavedState) -> None:
    """Loads a saved state into an optimizer that holds whole weights. Raises ValueError when the state is of other weights."""
    names = names_of(model)
    check_names(saved, set(names.values()))
    numbers: dict[nn.Parameter, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            numbers[parameter] = len(numbers)
    state: dict[int, dict[str, Any]] = {}
    for parameter, name in names.items():
        tensors: dict[str, Any] = {
            state_key: saved.read(name, state_key, 0, parameter.numel()).view(parameter.shape)
            for state_key in saved.element_keys(name)
        }
        for state_key in saved.whole_keys(name):
            key, _, kind = state_key.partition(":")
            tensors[key] = _PLAIN[kind](saved.full_value(name, state_key))
        if tensors:
            state[numbers[parameter]] = tensors
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# Kind of a value -> how it is read. Numbers stay numbers: some optimizers count with them.
_PLAIN: dict[str, Callable[[Tensor], Any]] = {
    "": lambda tensor: tensor,
    "int": lambda tensor: int(tensor.item()),
    "float": lambda tensor: float(tensor.item()),
    "bool": lambda tensor: bool(tensor.item()),
    "NoneType": lambda tensor: None,
}


def _as_tensor(value: Any) -> Tensor:
    if value is None:
        return torch.empty(0)
    if type(value) not in (int, float, bool):
        raise ValueError(f"an optimizer's state has a {type(value).__name__}, which cannot be saved")
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def check_names(saved: SavedState, trained: set[str]) -> None:
    if strange := {name for name in saved.names() if "." in name} - trained:
        raise ValueError(f"{saved.folder}: optimizer state of {min(strange)}, which is not trained in this run")


def groups_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Returns what changes in the groups while training (lr, and what some optimizers count there), as plain values."""
    return [{key: _plain(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def load_groups_state(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: _unplain(value) for key, value in saved.items()})


def _plain(value: Any) -> Any:
    """Returns a scalar tensor as its number and its type, since JSON has no tensors."""
    if isinstance(value, Tensor):
        return {"tensor": value.item(), "dtype": str(value.dtype).removeprefix("torch.")}
    return value


def _unplain(value: Any) -> Any:
    if isinstance(value, dict):
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    return tuple(value) if isinstance(value, list) else value
