"""The findings that the data check (`sft-dist check`) can report, in one table.

An *error* is data that cannot be trained on, or leads to a wrong or meaningless score; it blocks `submit` unless it is
allowed by name. A *warning* is worth a look.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Kind:
    severity: Severity
    hint: str  # how to fix it


# fmt: off
KINDS: dict[str, Kind] = {
    # the source
    "missing-column": Kind("error", "map the column in data.columns"),
    "bad-utf-8": Kind("error", "save the file as UTF-8"),
    "unreadable-row": Kind("error", "fix the rows, or exclude them with data.where"),
    "unread-key": Kind("warning", "nothing is learned from it: map the column in data.columns if it should be read"),
    "not-prepared": Kind("error", "training would stop here; fix the data or the recipe"),
    "crashed-check": Kind("error", "report it with the traceback; the other checks were made"),
    "replacement-characters": Kind("warning", "the text was decoded with a wrong encoding earlier"),
    "constant-column": Kind("warning", "a column with one value teaches nothing; is the right one mapped in data.columns?"),
    # labels
    "empty-label": Kind("error", "label the rows or exclude them; data.clean.drop_empty only drops them"),
    "unknown-label": Kind("error", "list every class in data.labels, or correct the spelling with data.clean.map_labels"),
    "label-not-in-training": Kind("error", "add training rows of the class, or exclude the rows with data.where"),
    "label-order": Kind("error", "give data.labels in the model's order, or its head is trained on permuted classes"),
    "label-missing-in-split": Kind("warning", "scores of this split do not cover the class"),
    "label-without-rows": Kind("warning", "the class is never learned: add rows of it, or remove it from data.labels"),
    "label-spelling": Kind("warning", "are they one class? data.clean.map_labels: {OTHER: NAME} merges them"),
    "class-imbalance": Kind("warning", "train.loss: {name: cross-entropy, class_weights: balanced}, or data.sampling: balanced"),
    "rare-class": Kind("warning", "collect more rows of the class, or merge it with another"),
    "suspicious-label": Kind("warning", "review them: a simple classifier is nearly sure that they have another label"),
    "conflicting-labels": Kind("warning", "decide on one label: every one of these rows is trained on"),
    "broken-tags": Kind("warning", "I-X continues B-X or I-X; entities are scored by that rule"),
    # texts
    "empty-text": Kind("warning", "the rows are dropped (data.clean.drop_empty)"),
    "empty-target": Kind("error", "a model trained on empty answers learns to say nothing; exclude the rows"),
    "source-equals-target": Kind("warning", "a model trained on copies learns to copy"),
    "outlier-length": Kind("warning", "often two joined rows, or a file in a cell"),
    "truncation": Kind("warning", "raise data.max_length, or shorten the texts where it does the least harm"),
    "zero-label": Kind("error", "nothing is learned from these examples: raise data.max_length, or check the chat template"),
    "too-long-for-model": Kind("error", "lower data.max_length to that number, or use a model for longer texts"),
    "token-without-embedding": Kind(
        "error", "use the model's own tokenizer, or save the model after model.resize_token_embeddings(len(tokenizer))"
    ),
    # copies
    "duplicate": Kind("warning", "data.clean.drop_duplicates keeps the first"),
    "near-duplicate": Kind("warning", "data.clean.near_duplicates: 0.8 drops them"),
    "leak": Kind("error", "take the rows out of the other splits, or divide with data.split.group"),
    "near-leak": Kind("warning", "take the rows out of the other splits, or divide with data.split.group"),
    # images
    "unreadable-image": Kind("error", "fix or remove the files"),
    "tiny-image": Kind("warning", "it is upscaled to the model's input size and has little detail"),
    "blank-image": Kind("warning", "every pixel has the same colour"),
    "unreadable-boxes": Kind("error", "each box is [x, y, width, height] in pixels, with one category"),
    "box-outside-image": Kind("error", "boxes are [x, y, width, height] in pixels from the top left corner"),
    "box-without-area": Kind("error", "boxes are [x, y, width, height]; these are skipped"),
    "no-boxes": Kind("warning", "correct for images without objects; otherwise the model learns to miss objects"),
    "too-many-boxes": Kind("warning", "the model has fewer queries than this, so the other boxes are never detected"),
    "mask-value": Kind("error", "a mask holds class numbers from 0 on, and task.ignore_index"),
    "mask-size": Kind("error", "a mask has the size of its image"),
    # sound
    "unreadable-audio": Kind("error", "fix or remove the files"),
    "sampling-rate": Kind("warning", "they are resampled, and may sound different from the others"),
    "silent-audio": Kind("warning", "the recording is silent"),
    "clipped-audio": Kind("warning", "recorded too loud: the peaks are clipped"),
    "too-long-audio": Kind("warning", "truncated or dropped at task.max_seconds"),
}
# fmt: on
