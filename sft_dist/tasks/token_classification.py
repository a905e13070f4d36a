"""Token classification: a tag for every word of a sentence, such as the names in it (BIO tags)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from datasets import Features, List, Value
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from sft_dist.data.clean import clean_text
from sft_dist.data.rows import Examples, Rows
from sft_dist.data.text_lists import is_broken_list, parse_list
from sft_dist.losses.classification import SINGLE_LABEL, CrossEntropy, Focal, build_loss
from sft_dist.losses.targets import IGNORED
from sft_dist.losses.tokens import TokenLoss, padded
from sft_dist.metrics.text import entities_of, entity_scores
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks.token_classification import TokenClassificationTask
from sft_dist.tasks.base import BaseTask, Rngs, StoredClasses
from sft_dist.tasks.classes import NO_LABEL
from sft_dist.tasks.label_types import class_name, sorted_labels, unknown_classes
from sft_dist.tasks.loading import load_pretrained, load_tokenizer
from sft_dist.tasks.tag_schemes import OUTSIDE, MixedTags, TagScheme, tag_scheme

_NAMED_ROWS = 10
_log = logging.getLogger(__name__)
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
    @property
    def stored_texts(self) -> Mapping[str, Callable[[Any], str]]:
        return {"tokens": lambda value: " ".join(value or ())}

    @property
    def stored_classes(self) -> StoredClasses:
        return StoredClasses("tags", lambda value, _: Counter(value).items(), "words")

    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        tokens = [
            clean_text(token, self.recipe.data.clean, "tokens", number)
            for token in _items(row["tokens"], "tokens", number)
        ]
        tags = ["" if tag is None else class_name(tag, number, "tags") for tag in _items(row["tags"], "tags", number)]
        if not any(token.strip() for token in tokens):
            return "empty text"
        if not tags or "" in tags:
            return NO_LABEL
        if len(tokens) != len(tags):
            counts = f"{len(tokens)} tokens, {len(tags)} tags"
            raise UserError(Problem(f"row {number}: every token needs one tag", "data.columns.tags", value=counts))
        tags = [self._name_of(self.renamed.get(tag, tag)) for tag in tags]
        if self.recipe.data.labels and (unknown := sorted(set(tags) - set(self.labels))):
            valid = tuple(self.labels[:20])
            raise UserError(
                Problem(f"row {number}: not one of data.labels", "data.labels", value=unknown[0], valid=valid)
            )
        return {"tokens": tokens, "tags": tags}

    def _name_of(self, tag: str) -> str:
        """Converts the number of a tag to its name in data.labels, unless numbers are the names."""
        names = self.recipe.data.labels or []
        is_number = tag.isdecimal() and tag not in names and int(tag) < len(names)
        return names[int(tag)] if is_number else tag

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
            _log.info("tag scheme: %s", self._scheme(self.labels).name)
            return
        names = {tag for tags in train.column("tags") for tag in tags}
        if len(names) < 2:
            raise UserError(Problem("at least two tags are needed", "data.columns.tags", value=str(sorted(names))))
        if all(name.isdecimal() for name in names):
            hint = "list the tags in the order of their numbers in data.labels, such as [O, B-PER, I-PER]"
            found = ", ".join(sorted(names, key=int)[:20])
            raise UserError(Problem("tags are numbers without names", "data.columns.tags", value=found, hint=hint))
        scheme = self._scheme(names, train)
        _log.info("tag scheme: %s", scheme.name)
        if scheme.name in ("BIO", "BIOES") and "o" not in names and scheme.normalize(sorted(names)) == sorted(names):
            is_long = scheme.name == "BIOES"
            prefixes = ("B-", "I-", "E-", "S-") if is_long else ("B-", "I-")
            types = {name[2:] for name in names if name != OUTSIDE and name[:2] != "S-"}
            names |= {OUTSIDE, *(prefix + kind for kind in types for prefix in prefixes)}
        self.labels = sorted_labels(names)

    @property
    def scheme(self) -> TagScheme:
        return self._scheme(self.labels)

    def _scheme(self, names: Iterable[str], train: Rows | None = None) -> TagScheme:
        """Returns the scheme of tags. Raises UserError naming training rows whose tags are of another one."""
        try:
            return tag_scheme(names)
        except MixedTags as error:
            odd = set(error.odd)
            rows = (
                []
                if train is None
                else [int(row) for row, tags in zip(train.ids, train.column("tags"), strict=True) if odd & set(tags)]
            )
            place = f"train rows {', '.join(map(str, rows[:_NAMED_ROWS]))}: " if rows else ""
            path = "data.labels" if self.recipe.data.labels else "data.columns.tags"
            hint = "correct these tags, or rename them with data.clean.map_labels"
            raise UserError(Problem(f"{place}mixed tag schemes: {error}", path, hint=hint)) from None

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
            continuations = _continuations(tuple(self.labels))
            targets = [IGNORED if word is None else continuations[tags[word]] for word in word_ids]
        for position, tag in zip(first, tags, strict=True):
            if position != LOST:
                targets[position] = tag
        return targets

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
        inner = build_loss(loss, SINGLE_LABEL, self.labels, lambda: np.concatenate(_targets_of(train)))
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
        scheme = self.scheme
        predicted = [scheme.normalize(prediction["tags"]) for prediction in predictions]
        scores = entity_scores([scheme.normalize(tags) for tags in targets], predicted)
        return {**scores, "tag_scheme": {"name": scheme.name}}

    def describe(self, predictions: list[Any], processor: Any) -> list[dict[str, Any]]:
        scheme = self.scheme
        entities = [
            entities_of(prediction["words"], scheme.normalize(prediction["tags"])) for prediction in predictions
        ]
        return [
            {"tags": prediction["tags"], "entities": spans}
            for prediction, spans in zip(predictions, entities, strict=True)
        ]


def _items(value: Any, role: str, row: int) -> list[Any]:
    """Returns the items of a list, of a list's text, or words separated by spaces. Raises UserError naming the row."""
    if value is None or isinstance(value, (list, tuple)):
        return list(value or ())
    if not isinstance(value, str) or is_broken_list(value):
        message = f"row {row}: a list is needed, or words separated by spaces"
        hint = 'write a list as JSON: ["Anna", "went"]'
        raise UserError(Problem(message, f"data.columns.{role}", value=repr(value)[:200], hint=hint))
    items = parse_list(value)
    return value.split() if items is None else items


@cache
def _continuations(labels: tuple[str, ...]) -> tuple[int, ...]:
    """Tag -> the tag of the same word's other pieces: of an entity that begins, the one inside it, where there is one."""
    scheme = tag_scheme(labels)
    names = scheme.normalize(list(labels))
    insides = [f"I-{name[2:]}" if scheme.marks_entities and name.startswith("B-") else "" for name in names]
    return tuple(names.index(inside) if inside in names else tag for tag, inside in enumerate(insides))


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
