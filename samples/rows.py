"""How samples are divided and written: one seed, so that everybody has the same rows in the same split."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
SEED = 17


def divided(items: Iterable[Item], validation: float = 0.1, test: float = 0.1) -> dict[str, list[Item]]:
    """The items, shuffled, as train, validation and test; the last two take the given share."""
    items = list(items)
    random.Random(SEED).shuffle(items)
    num_validation, num_test = round(len(items) * validation), round(len(items) * test)
    rest = num_validation + num_test
    return {"train": items[rest:], "validation": items[:num_validation], "test": items[num_validation:rest]}


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
