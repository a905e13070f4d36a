"""Shows a run's metrics.jsonl as it grows: one live line on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, TextIO

from launch.render import live_line, train_line, validation_line
from launch.run_state import parse_line
from sft_dist.recipe.units import format_duration

PLAIN_EVERY_S = 10.0


class Progress:
    """Prints the lines that are added after its creation."""

    def __init__(self, metrics: Path, stream: TextIO) -> None:
        self._metrics = metrics
        self._stream = stream
        self._live = stream.isatty()
        self._offset = metrics.stat().st_size if metrics.exists() else 0
        self._incomplete = b""
        self._text = ""
        self._entry: dict[str, Any] = {}
        self._losses: list[float | None] = []
        self._started = time.monotonic()
        self._printed = time.monotonic()
        self._train_printed = time.monotonic()

    def update(self) -> None:
        """Prints new entries."""
        for entry in self._new_entries():
            kind = entry.get("kind")
            if kind == "train":
                self._text, self._entry = train_line(entry), entry
                self._losses.append(entry.get("loss"))
                # Validations may come more often, and must not keep the loss from being seen.
                if not self._live and (time.monotonic() - self._train_printed >= PLAIN_EVERY_S or _is_last(entry)):
                    self._print(self._text)
                    self._train_printed = time.monotonic()
            elif kind == "validation":
                self._print(validation_line(entry))
            elif kind == "checkpoint":
                self._print(f"step {entry.get('step')}: checkpoint saved in {entry.get('seconds', 0):.1f} s")
        waiting = f"starting ... {format_duration(time.monotonic() - self._started)}"
        if not self._live and not self._text and time.monotonic() - self._printed >= PLAIN_EVERY_S:
            self._print(waiting)
        if self._live:
            self._stream.write(f"\r\x1b[K{self._live_text() or waiting}")
            self._stream.flush()

    def _live_text(self) -> str:
        unicode = (getattr(self._stream, "encoding", None) or "").lower().startswith("utf")
        return live_line(self._entry, self._losses, _width(self._stream), unicode) if self._entry else ""

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._print(text)

    def close(self) -> None:
        self.update()
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _print(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")
        self._stream.flush()
        self._printed = time.monotonic()

    def _new_entries(self) -> list[dict[str, Any]]:
        try:
            with self._metrics.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except OSError:
            return []
        self._offset += len(added)
        *lines, self._incomplete = (self._incomplete + added).split(b"\n")
        return [entry for line in lines if (entry := parse_line(line))]


def _is_last(entry: dict[str, Any]) -> bool:
    return entry.get("step") == entry.get("total_steps")


def _width(stream: TextIO) -> int:
    try:
        return max(20, os.get_terminal_size(stream.fileno()).columns - 1)
    except OSError:
        return 79
