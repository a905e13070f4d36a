"""Speech recognition with tiny models: recordings, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from sft_dist.data.rows import Rows
from sft_dist.tasks.speech_recognition import SpeechRecognition
from tests.sft_dist.tasks.tiny_audio import encoded, recipe, tone

TEXTS = ["Low", "high", "low, low!", "high low"]


def spoken(folder: Path) -> list[dict[str, Any]]:
    """A row for each text: a low or a high tone."""
    rows = []
    for number, text in enumerate(TEXTS):
        hertz = 300 if text.lower().startswith("low") else 2000
        path = tone(folder / f"{number}.wav", hertz, 0.4 + 0.15 * number)
        rows.append({"audio": {"path": str(path), "bytes": None}, "text": text})
    return rows


def made(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> tuple[Any, ...]:
    """(task, processor, model, examples), in the order in which the product makes them."""
    task = SpeechRecognition(recipe("speech-recognition", folder, task={"max_seconds": 1.0}, **sections))
    processor = task.load_processor(str(folder))
    task.learn_labels(Rows(Dataset.from_dict({"text": [row["text"] for row in rows]})))
    examples = encoded(task, rows, processor)
    return task, processor, task.build_model(str(folder), None, {}, processor), examples


def predicted(task: Any, model: Any, batch: list[dict[str, Any]], processor: Any) -> list[str]:
    inputs, _ = task.collate(batch, processor, None)
    with torch.no_grad():
        return task.predict(model, inputs, task.forward(model, inputs), processor)
