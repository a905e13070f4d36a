"""Text classification: one class, any number of classes, or one number for a text or a pair of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Features, Value
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from sft_dist.data.augment.text import augment_text, check_text_augment
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import Rngs
from sft_dist.tasks.classes import NO_LABEL, ClassTask
from sft_dist.tasks.loading import load_pretrained, load_tokenizer, were_cut


class TextClassification(ClassTask):
    pipeline_tag = "text-classification"
    peft_task = "SEQ_CLS"
    counts_tokens = True
    input_roles = ("text", "text_pair")
    text_roles = ("text", "text_pair")

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        text = Value("large_string")
        pair = {"text_pair": text} if "text_pair" in recipe.data.columns else {}
        self.row_features = Features({"text": text, **pair, "label": self.label_feature})
        self.encoded_features = self.target_features
        self.augment = recipe.data.augment.text
        if self.augment:
            check_text_augment(self.augment)

    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        label = self.parse(row["label"], number)
        if label is None:
            return NO_LABEL
        return {**row, "label": label} if row["text"] else "empty text"

    def load_processor(self, source: str, **options: Any) -> PreTrainedTokenizerBase:
        return load_tokenizer(source, **options)

    def encode(self, rows: dict[str, list[Any]], processor: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        longest = min(self.recipe.data.max_length, processor.model_max_length)
        encoded = processor(
            rows["text"], rows.get("text_pair"), truncation=True, max_length=longest, return_attention_mask=False
        )
        lengths = [len(ids) for ids in encoded["input_ids"]]
        columns = {**encoded, "length": lengths, "truncated": were_cut(encoded, longest)}
        if "label" in rows:
            columns["label"] = self.numbers_of(rows["label"])
        if self.augment:
            columns |= {role: rows[role] for role in self.text_roles if role in rows}
        return columns

    def collate(
        self, rows: list[dict[str, Any]], processor: PreTrainedTokenizerBase, rngs: Rngs | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        if rngs is not None and self.augment is not None:
            rows = [self._changed(row, processor, rng) for row, rng in zip(rows, rngs, strict=True)]
        names = [name for name in processor.model_input_names if name in rows[0]]
        inputs = processor.pad([{name: row[name] for name in names} for row in rows], return_tensors="pt")
        return dict(inputs), self.targets_of([row["label"] for row in rows]) if "label" in rows[0] else None

    def _changed(
        self, row: dict[str, Any], processor: PreTrainedTokenizerBase, rng: np.random.Generator
    ) -> dict[str, Any]:
        assert self.augment is not None
        texts = {role: [augment_text(row[role], self.augment, rng)] for role in self.text_roles if role in row}
        return {**row, **{name: values[0] for name, values in self.encode(texts, processor).items()}}

    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        auto = AutoModelForSequenceClassification
        model = load_pretrained(auto, folder, revision, config, self.model_labels, self.model_settings, **options)
        return self.with_threshold(model)
