"""A whole small recipe to change in tests."""

from __future__ import annotations

from pathlib import Path

GOOD = """\
task: text-classification
model:
  path: ./model
data:
  source: ./train.csv
tuning:
  method: lora
  r: 8
train:
  epochs: 2
  lr: 1e-4
"""


def write(folder: Path, text: str = GOOD, name: str = "my.yaml") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file
