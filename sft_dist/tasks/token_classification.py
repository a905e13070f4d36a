"""Token classification: a tag for every word of a sentence, such as the names in it (BIO tags)."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Features, List, Value
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from sft_dist.data.clean import clean_text
from sft_dist.data.rows import Examples, Rows
from sft_dist.losses.classification import CrossEntropy, Focal, build_loss
from sft_dist.losses.targets import IGNORED
from sft_dist.losses.tokens import TokenLoss, padded
from sft_dist.metrics.text import entities_of, entity_scores
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks.token_classification import TokenClassificationTask
from sft_dist.tasks.base import BaseTask, Rngs
from sft_dist.tasks.classes import NO_LABEL, class_name, sorted_labels, unknown_classes
from sft_dist.tasks.loading import load_pretrained, load_tokenizer

OUTSIDE = "O"
SCHEME = ("B-", "I-", "E-", "S-")  # what stands before an entity's type
LOST = -1  # of a word that the model does not see: truncated, or empty to the tokenizer
FOR_MODEL_ONLY = ("words", "first")  # what collate gives `predict` beside the model's inputs


class TokenClassification(BaseTask):
    pipeline_tag = "token-classification"
    peft_task = "TOKEN_CLS"
    counts_tokens = True
    input_roles = ("tokens",)
    row_features = Features({"tokens": List(Value("string")), "tags": List(Value("string"))})
    encoded_features = Features({name: List(Value("int32")) for name in ("first", "tags", "targets")})

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.task, TokenClassificationTask)
        self.all_pieces = recipe.task.label_all_pieces
        self.renamed = dict(recipe.data.clean.map_labels)

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        tokens = [clean_text(token, self.recipe.data.clean) for token in _list(row["tokens"])]
        tags = _list(row["tags"])
        if not any(token.strip() for token in tokens):
            return "empty text"
        if not tags or "" in tags:
            return NO_LABEL
        if len(tokens) != len(tags):
            counts = f"{len(tokens)} tokens, {len(tags)} tags"
            raise UserError(Problem(f"row {number}: every token needs one tag", "data.columns.tags", value=counts))
        tags = [self.renamed.get(tag, tag) for tag in tags]
        if self.recipe.data.labels and (unknown := sorted(set(tags) - set(self.labels))):
            valid = tuple(self.labels[:20])
            raise UserError(
                Problem(f"row {number}: not one of data.labels", "data.labels", value=unknown[0], valid=valid)
            )
        return {"tokens": tokens, "tags": tags}

    def input_texts(self, rows: Rows) -> list[str]:
        return [" ".join(tokens) for tokens in rows.column("tokens")]

    def num_chars(self, row: dict[str, Any]) -> int:
        return len(" ".join(row["tokens"]))

    def from_input(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": row["tokens"].split() or [""]}

    def learn_labels(self, train: Rows) -> None:
        """Collects the tags of the training rows. Where they mark entities, adds every prefix of each type, as one may be
        rare: B- and I-, and E- and S- where either occurs, except for types that are never longer than a word."""
        if self.labels:
            return
        names = {tag for tags in train.column("tags") for tag in tags}
        if len(names) < 2:
            raise UserError(Problem("at least two tags are needed", "data.columns.tags", value=str(sorted(names))))
        if is_bio(names):
            prefixes = SCHEME if any(name[:2] in ("E-", "S-") for name in names) else ("B-", "I-")
            types = {name[2:] for name in names if name != OUTSIDE and name[:2] != "S-"}
            names |= {OUTSIDE, *(prefix + kind for kind in types for prefix in prefixes)}
        self.labels = sorted_labels(names)

    # ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────
    def load_processor(self, source: str, **options: Any) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(source, **options)
        if not tokenizer.is_fast:
            message = (
                f"{type(tokenizer).__name__} does not say which word a token belongs to: there is no fast version of it"
            )
            raise UserError(Problem(message, "model.tokenizer", value=source))
        return tokenizer

    def encode(self, rows: dict[str, list[Any]], processor: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        longest = min(self.recipe.data.max_length, processor.model_max_length)
        # Byte-level tokenizers know a word inside a sentence by the space before it; to others it is nothing.
        spaced = [[f" {word}" if word else "" for word in words] for words in rows["tokens"]]
        encoded = processor(
            spaced, is_split_into_words=True, truncation=True, max_length=longest, return_attention_mask=False
        )
        word_ids = [encoded.word_ids(index) for index in range(len(rows["tokens"]))]
        first = [_first_pieces(ids, len(words)) for ids, words in zip(word_ids, rows["tokens"], strict=True)]
        lengths = [len(ids) for ids in encoded["input_ids"]]
        columns = {
            **encoded,
            "first": first,
            "length": lengths,
            "truncated": [LOST in pieces and length >= longest for pieces, length in zip(first, lengths, strict=True)],
        }
        if "tags" not in rows:
            return {**columns, "words": rows["tokens"]}
        tags = [self._numbers(names) for names in rows["tags"]]
        return {**columns, "tags": tags, "targets": list(map(self._targets, word_ids, first, tags))}

    def _numbers(self, names: list[str]) -> list[int]:
        number = {label: i for i, label in enumerate(self.labels)}
        if unknown := sorted(set(names) - set(number)):
            raise UserError(unknown_classes(unknown, self.labels))
        return [number[name] for name in names]

    def _targets(self, word_ids: list[int | None], first: list[int], tags: list[int]) -> list[int]:
        """Places a word's tag at its first piece; at its other pieces no tag, or the tag that continues it."""
        targets = [IGNORED] * len(word_ids)
        if self.all_pieces:
            targets = [IGNORED if word is None else self._continued(tags[word]) for word in word_ids]
        for position, tag in zip(first, tags, strict=True):
            if position != LOST:
                targets[position] = tag
        return targets

    def _continued(self, tag: int) -> int:
        inside = f"I-{self.labels[tag][2:]}"
        return self.labels.index(inside) if self.labels[tag].startswith("B-") and inside in self.labels else tag

    def collate(
        self, rows: list[dict[str, Any]], processor: PreTrainedTokenizerBase, rngs: Rngs | None
    ) -> tuple[dict[str, Any], Tensor | None]:
        names = [name for name in processor.model_input_names if name in rows[0]]
        batch = [{name: row[name] for name in names} for row in rows]
        inputs = dict(processor.pad(batch, padding_side="right", return_tensors="pt"))
        inputs["first"] = [row["first"] for row in rows]
        if "targets" not in rows[0]:
            return {**inputs, "words": [row["words"] for row in rows]}, None
        return inputs, padded([row["targets"] for row in rows], IGNORED)

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        return load_pretrained(AutoModelForTokenClassification, folder, revision, config, self.labels, **options)

    def build_loss(self, train: Examples) -> TokenLoss:
        loss = self.recipe.train.loss
        inner = build_loss(loss, "token-classification", self.labels, lambda: np.concatenate(_targets_of(train)))
        assert isinstance(inner, CrossEntropy | Focal)
        return TokenLoss(inner)

    def weights(self, loss: TokenLoss, examples: Examples) -> np.ndarray:
        return np.array([float(loss.inner.weights(targets).sum()) for targets in _targets_of(examples)])

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        return model(**{name: value for name, value in inputs.items() if name not in FOR_MODEL_ONLY}).logits.float()

    # ── predictions ─────────────────────────────────────────────────────────────────────────────────────────────────
    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Tensor, processor: Any) -> list[Any]:
        """Returns the tags of each example's words, and the words where there are no targets."""
        best = outputs.argmax(-1).cpu().tolist()
        words = inputs.get("words") or [None] * len(best)
        return [
            {
                "tags": [OUTSIDE if position == LOST else self.labels[classes[position]] for position in first],
                "words": text,
            }
            for classes, first, text in zip(best, inputs["first"], words, strict=True)
        ]

    def references(self, examples: Examples) -> list[Any]:
        return [[self.labels[number] for number in tags] for tags in examples.column("tags")]

    def score(self, predictions: list[Any], examples: Examples, processor: Any) -> dict[str, Any]:
        """Scores words, not pieces; a truncated word counts as outside all entities."""
        targets = self.references(examples)
        return entity_scores(
            _as_bio(targets, self.labels), _as_bio([prediction["tags"] for prediction in predictions], self.labels)
        )

    def describe(self, predictions: list[Any], processor: Any) -> list[dict[str, Any]]:
        entities = [
            entities_of(prediction["words"], tags)
            for prediction, tags in zip(
                predictions, _as_bio([prediction["tags"] for prediction in predictions], self.labels), strict=True
            )
        ]
        return [
            {"tags": prediction["tags"], "entities": spans}
            for prediction, spans in zip(predictions, entities, strict=True)
        ]


def is_bio(names: set[str]) -> bool:
    """Checks whether tags mark where entities begin and continue; parts of speech do not."""
    return all(name == OUTSIDE or name[:2] in SCHEME for name in names)


def _as_bio(sentences: list[list[str]], labels: list[str]) -> list[list[str]]:
    """Converts tags that are not BIO to entities of one word each."""
    if is_bio(set(labels)):
        return sentences
    return [[tag if tag == OUTSIDE else f"B-{tag}" for tag in tags] for tags in sentences]


def _list(value: Any) -> list[str]:
    """Accepts a list, or words separated by spaces."""
    words = value.split() if isinstance(value, str) else value or []
    return ["" if word is None else class_name(word) if not isinstance(word, str) else word for word in words]


def _first_pieces(word_ids: list[int | None], num_words: int) -> list[int]:
    """Position of each word's first token; LOST for a word without tokens."""
    first = [LOST] * num_words
    for position in range(len(word_ids) - 1, -1, -1):
        word = word_ids[position]
        if word is not None:
            first[word] = position
    return first


def _targets_of(examples: Examples) -> list[np.ndarray]:
    """Learned class numbers of each example."""
    arrays = [np.array(targets, dtype=np.int64) for targets in examples.column("targets")]
    return [targets[targets != IGNORED] for targets in arrays]
