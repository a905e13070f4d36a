"""Text classification: one class, any number of classes, or one number for a text or a pair of texts."""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from sft_dist import metrics
from sft_dist.data.prepare import Rows
from sft_dist.losses import SumLoss, build_loss
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import Examples

log = logging.getLogger("sft_dist")

_WHOLE_NUMBER = re.compile(r"-?[0-9]+")
PROBLEM_TYPES = {
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}


class TextClassification:
    roles = ("text", "text_pair")
    peft_task = "SEQ_CLS"

    def __init__(self, recipe: Recipe) -> None:
        self.problem = recipe.task.problem
        self.threshold = recipe.task.threshold or 0.5
        self.separator = recipe.task.label_separator or ","
        self.max_length = recipe.data.max_length
        self.given_labels = recipe.data.labels
        self.labels: list[str] = list(recipe.data.labels or [])
        self.loss = recipe.train.loss

    # ── labels ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def parse(self, raw: Any, row: int) -> Any | None:
        if raw is None or (isinstance(raw, float) and math.isnan(raw)):
            return None
        if self.problem == "regression":
            if isinstance(raw, str) and not raw.strip():
                return None
            try:
                value = float(raw)
            except (TypeError, ValueError):
                raise UserError(
                    Problem(f"row {row}: a number is needed", path="data.columns.label", found=repr(raw))
                ) from None
            if not math.isfinite(value):
                raise UserError(
                    Problem(f"row {row}: a finite number is needed", path="data.columns.label", found=repr(raw))
                )
            return value
        if self.problem == "multi-label":
            # A column of one number a row is read as numbers: one class each.
            parts = raw.split(self.separator) if isinstance(raw, str) else raw if isinstance(raw, list) else [raw]
            return [self._known(_name(part), row) for part in parts if part is not None and _name(part)]
        return self._known(_name(raw), row) if _name(raw) else None

    def _known(self, name: str, row: int) -> str:
        if self.given_labels and name not in self.given_labels:
            near = difflib.get_close_matches(name, self.given_labels, 1)
            raise UserError(
                Problem(
                    f"row {row}: not one of data.labels",
                    path="data.labels",
                    found=name,
                    valid=tuple(self.given_labels[:20]),
                    hint=f"did you mean `{near[0]}`?" if near else "",
                )
            )
        return name

    def strata(self, targets: Sequence[Any]) -> list[Hashable] | None:
        return list(targets) if self.problem == "single-label" else None

    def learn_labels(self, targets: Sequence[Any]) -> None:
        if self.problem == "regression" or self.labels:
            return
        names = set(targets) if self.problem == "single-label" else {name for target in targets for name in target}
        self.labels = sorted(
            names, key=lambda name: (0, int(name), name) if _WHOLE_NUMBER.fullmatch(name) else (1, 0, name)
        )
        needed, said = (2, "two classes are") if self.problem == "single-label" else (1, "one class is")
        if len(self.labels) < needed:
            raise UserError(Problem(f"at least {said} needed", path="data.columns.label", found=str(self.labels)))

    def _numbers(self, targets: Sequence[Any]) -> np.ndarray:
        if self.problem == "regression":
            return np.array(targets, dtype=np.float32)
        number = {label: i for i, label in enumerate(self.labels)}
        groups = [[target] for target in targets] if self.problem == "single-label" else targets
        if strange := sorted({name for names in groups for name in names} - set(number)):
            raise UserError(
                Problem(
                    "classes that do not occur in the training rows",
                    path="data.labels",
                    found=", ".join(strange[:10]),
                    valid=tuple(self.labels[:20]),
                    hint="list every class in data.labels, or correct the data",
                )
            )
        if self.problem == "single-label":
            return np.array([number[target] for target in targets], dtype=np.int64)
        hot = np.zeros((len(targets), len(self.labels)), dtype=np.float32)
        for row, names in enumerate(targets):
            hot[row, [number[name] for name in names]] = 1
        return hot

    # ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────
    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Examples:
        return replace(self.encode_inputs(rows, tokenizer), targets=self._numbers(rows.targets))

    def encode_inputs(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Examples:
        longest = min(self.max_length, tokenizer.model_max_length)
        encoded = tokenizer(rows.fields["text"], rows.fields.get("text_pair"), truncation=True, max_length=longest)
        inputs = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        lengths = np.array([len(example["input_ids"]) for example in inputs])
        truncated = int((lengths >= longest).sum())
        return Examples(rows.ids, inputs, lengths, np.zeros(len(inputs)), truncated)

    def collate(
        self, examples: Examples, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[dict[str, Tensor], Tensor]:
        inputs = tokenizer.pad([examples.inputs[i] for i in indices], return_tensors="pt")
        return dict(inputs), torch.from_numpy(examples.targets[indices])

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(self, folder: str, revision: str | None, config: dict[str, Any], **options: Any) -> PreTrainedModel:
        options = {"trust_remote_code": False, "use_safetensors": True, "weights_only": True, **options}
        code = {key: value for key, value in options.items() if key in ("trust_remote_code", "code_revision")}
        names = dict(enumerate(self.labels)) if self.labels else {0: "value"}
        settings = AutoConfig.from_pretrained(
            folder,
            revision=revision,
            num_labels=len(names),
            id2label=names,
            label2id={name: i for i, name in names.items()},
            problem_type=PROBLEM_TYPES[self.problem],
            **code,
        )
        known = settings.to_dict()
        for key, value in config.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, 3)
                raise UserError(
                    Problem(
                        f"the config of {type(settings).__name__} has no such value",
                        path=f"model.config.{key}",
                        found=key,
                        hint=f"did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else "",
                    )
                )
            setattr(settings, key, value)
        # fp32 weights whatever the checkpoint holds: bf16 weights would train without a master copy.
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            revision=revision,
            config=settings,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
        if new := sorted(info["missing_keys"]):
            log.info("new weights, not in %s: %s", folder, ", ".join(new))
        return model

    def build_loss(self, train_targets: np.ndarray) -> SumLoss:
        return build_loss(self.loss, self.problem, self.labels, train_targets)

    def logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return model(**inputs).logits.float()  # (batch, classes)

    # ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def score(self, logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        if self.problem == "regression":
            return metrics.regression_scores(logits[:, 0], targets)
        if self.problem == "multi-label":
            return metrics.multi_label_scores(logits, targets.astype(int), self.threshold)
        return metrics.single_label_scores(logits, targets)

    def describe(self, logits: np.ndarray) -> list[dict[str, Any]]:
        if self.problem == "regression":
            return [{"value": float(row[0])} for row in logits]
        if self.problem == "multi-label":
            return [
                {
                    "labels": [label for label, p in zip(self.labels, row, strict=True) if p >= self.threshold],
                    "probabilities": dict(zip(self.labels, map(float, row), strict=True)),
                }
                for row in metrics.sigmoid(logits)
            ]
        return [
            {
                "label": self.labels[int(row.argmax())],
                "probability": float(row.max()),
                "probabilities": dict(zip(self.labels, map(float, row), strict=True)),
            }
            for row in metrics.softmax(logits)
        ]


def _name(raw: Any) -> str:
    """Class names are text; 1, 1.0 and '1' are the same class."""
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, float) and raw.is_integer():
        return str(int(raw))
    return str(raw).strip()
