"""Rows in files of every format, and what preparing them gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sft_dist.data.prepare import Prepared, prepare
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of

ROWS = [{"text": f"text {n}", "label": ["neg", "pos"][n % 2], "lang": ["en", "de", "fr"][n % 3]} for n in range(30)]


def recipe_of(source: Any, problem: str = "single-label", seed: int = 0, **data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "rows",
            "task": {"type": "text-classification", "problem": problem},
            "model": {"path": "/nowhere"},
            "data": {"source": source, **data},
            "tuning": "full",
            "train": {"lr": 1e-3, "seed": seed},
        }
    )


def prepared(source: Any, **settings: Any) -> Prepared:
    recipe = recipe_of(str(source) if isinstance(source, Path) else source, **settings)
    return prepare(recipe, task_of(recipe))


def mistake(source: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepared(source, **settings)
    return str(caught.value)


def prepared_for(task: str, rows: list[dict[str, Any]], file: Path, **clean: Any) -> Prepared:
    """All of it in the training split."""
    recipe = Recipe.model_validate(
        {
            "name": "rows",
            "task": task,
            "model": {"path": "/nowhere"},
            "data": {"source": str(write_jsonl(file, rows)), "split": {"test": 0, "validation": 0}, "clean": clean},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
    )
    return prepare(recipe, task_of(recipe))


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    Dataset.from_list(rows).save_to_disk(str(path.parent / "aside"))
    (shard,) = (path.parent / "aside").glob("*.arrow")
    shard.rename(path)
    return path


WRITERS = {
    "rows.csv": write_csv,
    "rows.CSV": write_csv,
    "rows.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows)) and path,
    "rows.jsonl": write_jsonl,
    "rows.parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(str(path)) and path,
    "rows.arrow": write_arrow,
    "saved": lambda path, rows: Dataset.from_list(rows).save_to_disk(str(path)) or path,
}


def all_texts(found: Prepared) -> list[str]:
    return sorted(text for rows in found.splits.values() for text in rows.column("text"))


def ids_of(found: Prepared) -> dict[str, list[int]]:
    return {split: rows.ids.tolist() for split, rows in found.splits.items()}
