"""What a task is: how a label is read, how an example is encoded, which head is trained, how predictions are scored.

The loop, the checkpoints, the sweep and the data path know tasks only through this protocol.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_dist.losses import SumLoss

if TYPE_CHECKING:
    from sft_dist.data.prepare import Rows


@dataclass(frozen=True)
class Examples:
    """One encoded split."""

    ids: np.ndarray  # (examples,) row number in the source
    inputs: list[dict[str, list[int]]]  # token ids and what goes with them, unpadded
    lengths: np.ndarray  # (examples,) tokens
    targets: np.ndarray  # (examples,) class numbers or values; (examples, classes) for multi-label
    num_truncated: int
    split: str = ""

    def __len__(self) -> int:
        return len(self.ids)


class Task(Protocol):
    labels: list[str]  # class names in the order of the outputs; empty for regression
    roles: tuple[str, ...]  # columns read as input; the first is required
    peft_task: str  # PEFT's name for the kind of head, which tells it what to train beside the adapters

    def parse(self, raw: Any, row: int) -> Any | None:
        """A label as the source has it -> target, None when there is none. Raises UserError naming the row."""

    def strata(self, targets: Sequence[Any]) -> list[Hashable] | None:
        """What to keep in equal shares when splitting; None when that has no meaning."""

    def learn_labels(self, targets: Sequence[Any]) -> None:
        """Fix `labels` from the training targets, unless the recipe gives them."""

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Examples: ...

    def encode_inputs(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Examples:
        """Like `encode` for rows without targets, which are then zeros."""

    def build_model(self, folder: str, revision: str | None, config: dict[str, Any], **options: Any) -> PreTrainedModel:
        """`options` are of `from_pretrained`. Without them neither code nor a pickle is loaded."""

    def build_loss(self, train_targets: np.ndarray) -> SumLoss: ...

    def collate(
        self, examples: Examples, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Padded model inputs and the targets."""

    def logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor: ...

    def score(self, logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]: ...

    def describe(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """What `predict` says about each example."""
