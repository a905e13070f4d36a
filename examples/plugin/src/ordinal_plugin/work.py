"""The work of the task: each output of the model says whether the rating is above a level (Frank & Hall 2001)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Features, Value
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ordinal_plugin.settings import OrdinalTextTask
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import BaseTask
from sft_dist.tasks.loading import load_pretrained, load_tokenizer, were_cut


class OrdinalLoss:
    """Binary cross-entropy of every level, as a sum over examples."""

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:  # (examples, levels - 1), (examples,) -> ()
        levels = torch.arange(outputs.shape[1], device=outputs.device)
        above = (targets[:, None] > levels).to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, above, reduction="none").mean(dim=1).sum()


class OrdinalText(BaseTask):
    pipeline_tag = "text-classification"
    peft_task = "SEQ_CLS"
    counts_tokens = True
    input_roles = ("text",)
    text_roles = ("text",)
    row_features = Features({"text": Value("large_string"), "label": Value("int64")})
    encoded_features = Features({"label": Value("int64")})

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.task, OrdinalTextTask)
        self.levels = recipe.task.levels

    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        if row["label"] is None:
            return "no label"
        if str(row["label"]) not in map(str, range(self.levels)):
            raise UserError(f"row {number}: the rating {row['label']!r} is not a whole number below {self.levels}")
        return {"text": row["text"], "label": int(row["label"])} if row["text"] else "empty text"

    def load_processor(self, source: str, **options: Any) -> PreTrainedTokenizerBase:
        return load_tokenizer(source, **options)

    def encode(self, rows: dict[str, list[Any]], processor: Any) -> dict[str, list[Any]]:
        longest = self.recipe.data.max_length
        encoded = processor(rows["text"], truncation=True, max_length=longest, return_attention_mask=False)
        columns = {
            **encoded,
            "length": [len(ids) for ids in encoded["input_ids"]],
            "truncated": were_cut(encoded, longest),
        }
        return {**columns, "label": rows["label"]} if "label" in rows else columns

    def collate(self, rows: list[dict[str, Any]], processor: Any, rngs: Any) -> tuple[dict[str, Any], Tensor | None]:
        names = [name for name in processor.model_input_names if name in rows[0]]
        inputs = processor.pad([{name: row[name] for name in names} for row in rows], return_tensors="pt")
        return dict(inputs), torch.tensor([row["label"] for row in rows]) if "label" in rows[0] else None

    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        labels = [f"above {level}" for level in range(self.levels - 1)]
        settings = {"problem_type": "multi_label_classification"}
        auto = AutoModelForSequenceClassification
        return load_pretrained(auto, folder, revision, config, labels, settings, **options)

    def build_loss(self, train: Any) -> OrdinalLoss:
        return OrdinalLoss()

    def weights(self, loss: OrdinalLoss, examples: Any) -> np.ndarray:
        return np.ones(len(examples))

    def predict(self, model: Any, inputs: dict[str, Any], outputs: Tensor, processor: Any) -> list[int]:
        return (outputs > 0).sum(dim=1).tolist()

    def references(self, examples: Any) -> list[int]:
        return examples.numbers("label").tolist()

    def score(self, predictions: list[int], examples: Any, processor: Any) -> dict[str, Any]:
        distance = np.abs(np.array(predictions) - np.array(self.references(examples)))
        return {"mae": float(distance.mean()), "accuracy": float((distance == 0).mean())}

    def describe(self, predictions: list[int], processor: Any) -> list[dict[str, Any]]:
        return [{"rating": rating} for rating in predictions]
