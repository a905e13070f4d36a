"""Scores checkpoints one after another, keeping data, tokens and base model from one to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sft_dist.checkpoint import Checkpoint
from sft_dist.data.prepare import Prepared, prepare
from sft_dist.inference import assemble, autocast, forward, length_sorted_batches, scores_of
from sft_dist.losses import SumLoss
from sft_dist.models import build_model, load_tokenizer
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from sft_dist.tasks.base import Examples, Task
from sft_dist.tasks.named import encode
from sft_dist.tuning import load_weights


@dataclass
class _Loaded:
    data_key: str
    task: Task
    tokenizer: PreTrainedTokenizerBase
    rows: Prepared
    examples: dict[str, Examples]
    model_key: str = ""
    model: nn.Module | None = None


class Judge:
    """Data are read again only when the data settings change, the base only when model or tuning do."""

    def __init__(self) -> None:
        self.device = torch.accelerator.current_accelerator() or torch.device("cpu")
        self._loaded: _Loaded | None = None

    def score(self, recipe: Recipe, checkpoint: Checkpoint, split: str) -> dict[str, Any]:
        """Scores of one checkpoint on one split. Raises UserError when the split is empty."""
        loaded = self._load(recipe)
        examples = self._examples(loaded, split)
        model = self._model(loaded, recipe)
        load_weights(model, checkpoint.model)
        batches = length_sorted_batches(examples.lengths, recipe.evaluate.micro_batch)
        parts = forward(
            model,
            loaded.task,
            loaded.tokenizer,
            examples,
            batches,
            self.device,
            autocast(self.device, recipe.train.precision),
        )
        logits = assemble(parts, len(examples))
        return {"examples": len(examples), **scores_of(loaded.task, self._loss(loaded, recipe), logits, examples)}

    def _load(self, recipe: Recipe) -> _Loaded:
        key = recipe.model_dump_json(include={"task", "data", "model"})
        if self._loaded is None or self._loaded.data_key != key:
            task = task_of(recipe)
            rows = prepare(recipe, task)
            task.learn_labels(rows.splits["train"].targets)
            self._loaded = _Loaded(key, task, load_tokenizer(recipe), rows, {})
        return self._loaded

    def _examples(self, loaded: _Loaded, split: str) -> Examples:
        if split not in loaded.rows.splits:
            way = "" if split == "validation" else f", or leave {split} out of evaluate.report_on"
            raise UserError(f"the data has no {split} split: set data.split.{split} above 0{way}")
        if split not in loaded.examples:
            loaded.examples[split] = encode(loaded.task, loaded.rows.splits[split], loaded.tokenizer, split)
        return loaded.examples[split]

    def _model(self, loaded: _Loaded, recipe: Recipe) -> nn.Module:
        key = recipe.model_dump_json(include={"model", "tuning"})
        if loaded.model is None or loaded.model_key != key:
            loaded.model = build_model(recipe, loaded.task, loaded.tokenizer).to(self.device)
            loaded.model_key = key
        return loaded.model

    def _loss(self, loaded: _Loaded, recipe: Recipe) -> SumLoss:
        # `balanced` class weights are counted on the training targets, so those are encoded for them alone.
        needs_counts = getattr(recipe.train.loss, "class_weights", None) == "balanced"
        targets = (
            self._examples(loaded, "train").targets if needs_counts else next(iter(loaded.examples.values())).targets
        )
        # The task in memory may come from another run of a matrix, which has the same data and another loss.
        task = task_of(recipe)
        task.labels = loaded.task.labels
        return task.build_loss(targets)
