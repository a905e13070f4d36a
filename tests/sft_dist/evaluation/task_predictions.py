"""Predictions of every task on a few examples, as `predict` makes them: noise around the truth, so that scores are neither perfect
nor worst."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features

from sft_dist.data.rows import ROW, Examples
from sft_dist.metrics.vision import confusion
from sft_dist.tasks import task_of
from sft_dist.tasks.object_detection import predicted_boxes
from tests.tiny_text import byte_tokenizer, causal_model, examples_of, predictions_of, recipe_of

CLASSES = ["a", "b", "c"]
TEXTS = ["the cat sat on the mat", "a dog lay beside the door", "é — ligne\nnouvelle", "", "\ud800 lone", "the cat"]
TAGS = [["B-PER", "I-PER", "O"], ["O"], ["B-LOC", "O", "B-PER", "I-PER"], ["O", "B-LOC"], ["B-PER"], ["O", "O"]]
Case = tuple[Any, list[Any], Examples]  # task, predictions, examples


def encoded(columns: dict[str, list[Any]], features: Features | None = None) -> Examples:
    table = Dataset.from_dict(columns, features=features)
    return Examples(table.add_column(ROW, np.arange(len(table)) + 100), "validation")


def classification(problem: str, num: int = 12) -> Case:
    rng = np.random.default_rng(0)
    task = task_of(
        recipe_of(
            {"type": "text-classification", "problem": problem}, labels=CLASSES if problem != "regression" else None
        )
    )
    targets = rng.integers(0, 3, num)
    logits = torch.from_numpy(rng.normal(size=(num, 3)).astype(np.float32))
    logits[torch.arange(num), torch.from_numpy(targets)] += 1
    labels: list[Any] = targets.tolist()
    if problem == "multi-label":
        labels = [sorted({int(c), int(d)}) for c, d in zip(targets, rng.integers(0, 3, num), strict=True)]
    if problem == "regression":
        labels, logits = logits[:, 0].tolist(), logits[:, :1] + 0.5 * logits[:, 1:2]
    return task, task.predict(None, {}, logits, None), encoded({"label": labels}, task.encoded_features)


def image_or_audio(kind: str, num: int = 12) -> Case:
    _, predictions, examples = classification("single-label", num)
    return task_of(recipe_of({"type": kind}, labels=CLASSES)), predictions, examples


def tagged() -> Case:
    labels = sorted({tag for tags in TAGS for tag in tags})
    task = task_of(recipe_of("token-classification", labels=labels))
    numbers = [[labels.index(tag) for tag in tags] for tags in TAGS]
    predictions = [{"tags": tags, "words": None} for tags in [["B-PER", "O", "O"], *TAGS[1:4], ["O"], ["B-LOC", "O"]]]
    return task, predictions, encoded({"tags": numbers})


def written(kind: str) -> Case:
    references = [text.encode(errors="replace").decode() or "nothing" for text in TEXTS]
    column = "text" if kind == "speech-recognition" else "target"
    return task_of(recipe_of(kind)), [text.replace("cat", "rat") for text in references], encoded({column: references})


def answered(packing: bool = False, **settings: Any) -> Case:
    tokenizer = byte_tokenizer()
    task = task_of(recipe_of({"type": "instruction-tuning", "packing": packing, **settings}, max_length=64))
    pairs = [("how many legs has a spider?", "eight"), ("and the dog?", "it lay beside the door"), ("hm?", "the")]
    rows = {"chat": [task.read({"prompt": q, "completion": a}, i)["chat"] for i, (q, a) in enumerate(pairs)]}
    examples = examples_of(task, rows, tokenizer)
    return task, predictions_of(task, causal_model("llama", len(tokenizer)), examples, tokenizer), examples


def boxes(num: int = 6) -> Case:
    rng = np.random.default_rng(1)
    task = task_of(recipe_of("object-detection", labels=CLASSES))
    truth = rng.uniform(5, 20, (num, 2, 4)).tolist()
    classes = rng.integers(0, 3, (num, 2)).tolist()
    logits = torch.from_numpy(rng.normal(size=(num, 4, 3)).astype(np.float32))
    centred = torch.from_numpy(rng.uniform(0.2, 0.5, (num, 4, 4)).astype(np.float32))
    for image in range(num):
        for query, (x, y, width, height) in enumerate(truth[image]):
            centred[image, query] = torch.tensor([x + width / 2, y + height / 2, width, height]) / 60
            logits[image, query, classes[image][query]] += 2
    predictions = predicted_boxes(logits, centred, torch.full((num, 2), 60), softmax=False)
    return task, predictions, encoded({"boxes": truth, "classes": classes, "iscrowd": [[0, 0]] * num})


def masks(num: int = 6) -> Case:
    rng = np.random.default_rng(2)
    task = task_of(recipe_of("semantic-segmentation", labels=CLASSES))
    truth = rng.integers(0, 3, (num, 8, 9))
    predicted = np.where(rng.random(truth.shape) < 0.3, rng.integers(0, 3, truth.shape), truth)
    matrices = [confusion(*pair, 3, 255) for pair in zip(predicted, truth, strict=True)]
    return task, matrices, encoded({"pixels": [[1]] * num})


CASES: dict[str, Any] = {
    **{
        problem: lambda problem=problem: classification(problem)
        for problem in ("single-label", "multi-label", "regression")
    },
    "image-classification": lambda: image_or_audio("image-classification"),
    "audio-classification": lambda: image_or_audio("audio-classification"),
    "token-classification": tagged,
    "translation": lambda: written("translation"),
    "summarization": lambda: written("summarization"),
    "speech-recognition": lambda: written("speech-recognition"),
    "instruction-tuning": answered,
    "instruction-tuning, packed": lambda: answered(packing=True),
    "object-detection": boxes,
    "semantic-segmentation": masks,
}
