"""Forward passes without gradients over a whole split, padded little and each example exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sft_dist.losses import SumLoss
from sft_dist.tasks.base import Examples, Task
from sft_dist.tasks.named import collate


def length_sorted_batches(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Indices in batches of similar length, the longest first: if memory is too small, it shows at once."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """fp8 is for training; what it has trained is judged in bf16."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def forward(
    model: nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    batches: Sequence[np.ndarray],
    device: torch.device,
    autocast: AbstractContextManager[None],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(indices, logits) of each batch; logits are (batch, classes) in fp32."""
    model.eval()
    found = []
    # Not inference_mode: sharded weights are gathered, and those tensors are used again.
    with torch.no_grad(), autocast:
        for indices in batches:
            inputs, _ = collate(task, examples, indices, tokenizer)
            logits = task.logits(model, {name: value.to(device) for name, value in inputs.items()})
            found.append((indices, logits.float().cpu().numpy()))
    return found


def assemble(parts: Iterable[tuple[np.ndarray, np.ndarray]], num_examples: int) -> np.ndarray:
    """Logits in the examples' own order, (examples, classes). Every example must be in exactly one part."""
    parts = list(parts)
    indices = np.concatenate([indices for indices, _ in parts])
    if len(indices) != num_examples or len(np.unique(indices)) != num_examples:
        raise RuntimeError(f"{len(indices)} predictions for {num_examples} examples")
    logits = np.concatenate([rows for _, rows in parts])
    return logits[np.argsort(indices)]


def scores_of(task: Task, loss: SumLoss, logits: np.ndarray, examples: Examples) -> dict[str, Any]:
    """The task's scores, and the mean loss over the split (weighted as in training)."""
    total = loss.total(torch.from_numpy(logits).double(), _double(examples.targets)).item()
    return {"loss": total / float(loss.weights(examples.targets).sum()), **task.score(logits, examples.targets)}


def better(score: float | None, than: float | None, direction: str, min_delta: float = 0.0) -> bool:
    """An undefined score is better than nothing else."""
    if score is None or than is None:
        return score is not None
    return score > than + min_delta if direction == "max" else score < than - min_delta


def _double(targets: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(targets)
    return tensor.double() if tensor.is_floating_point() else tensor
