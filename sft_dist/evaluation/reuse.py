"""Each evaluation on the test split: which checkpoint, when. Choosing among several test scores makes them optimistic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sft_dist.recipe.files import append_line
from sft_dist.run.attempt import timestamp
from sft_dist.run.candidates import candidate_name, members_in
from sft_dist.run.folder import RunFolder


def record_evaluation(folder: RunFolder, step: int, fingerprint: str, members: Sequence[int] = ()) -> None:
    """Appends an evaluation on test to the run folder, before the split is scored."""
    folder.evaluation.mkdir(mode=0o700, exist_ok=True)
    candidate = {"step": step, **({"members": [*members]} if members else {}), "checkpoint": fingerprint}
    append_line(folder.test_evaluations_file, json.dumps({**candidate, "time": timestamp()}))


def evaluations_on_test(folders: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Returns all evaluations on test of these runs, oldest first, one for each checkpoint: scoring the same weights again shows nothing new."""
    evaluations = [{"run": folder.id, **evaluation} for folder in folders for evaluation in _lines(folder)]
    first: dict[str, dict[str, Any]] = {}
    for evaluation in sorted(evaluations, key=lambda evaluation: evaluation["time"]):
        first.setdefault(evaluation["checkpoint"], evaluation)
    return list(first.values())


def reuse_note(evaluations: Sequence[dict[str, Any]]) -> str:
    """Returns what to say when test was scored for more than one checkpoint, else an empty text."""
    if len(evaluations) < 2:
        return ""
    listed = ", ".join(
        f"{evaluation['run']} {candidate_name(evaluation['step'], members_in(evaluation))} ({evaluation['time'][:10]})"
        for evaluation in evaluations
    )
    return f"test was scored for {len(evaluations)} checkpoints ({listed}), so choosing among them makes its scores optimistic"


def _lines(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        lines = folder.test_evaluations_file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    evaluations = []
    for line in lines:
        try:
            evaluations.append(json.loads(line))
        except ValueError:  # the last line of a process that was killed
            continue
    return evaluations
