"""Each look at the test split: which checkpoint, when. The score of a second checkpoint is no longer from a single look."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from sft_dist.recipe.files import append_line
from sft_dist.run.folder import RunFolder


def record_look(folder: RunFolder, step: int, fingerprint: str) -> None:
    """Appends a look to the run folder, before the split is scored: what was seen cannot be unseen."""
    folder.evaluation.mkdir(mode=0o700, exist_ok=True)
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    append_line(folder.test_looks_file, json.dumps({"step": step, "checkpoint": fingerprint, "time": time}))


def looks_of(folders: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """All looks at test of these runs, oldest first, one for each checkpoint: scoring the same weights again shows nothing new."""
    looks = [{"run": folder.id, **look} for folder in folders for look in _lines(folder)]
    first: dict[str, dict[str, Any]] = {}
    for look in sorted(looks, key=lambda look: look["time"]):
        first.setdefault(look["checkpoint"], look)
    return list(first.values())


def several_looks(looks: Sequence[dict[str, Any]]) -> str:
    """Returns what to say when test was scored for more than one checkpoint, else an empty text."""
    if len(looks) < 2:
        return ""
    listed = ", ".join(f"{look['run']} step {look['step']} ({look['time'][:10]})" for look in looks)
    return (
        f"test was scored for {len(looks)} checkpoints ({listed}), so choosing among them makes its scores optimistic"
    )


def _lines(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        lines = folder.test_looks_file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    looks = []
    for line in lines:
        try:
            looks.append(json.loads(line))
        except ValueError:  # the last line of a process that was killed
            continue
    return looks
