"""What is shown of a run as it goes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from launch.local import progress
from launch.local.progress import Progress


def test_a_pipe_is_told_that_the_run_is_starting_until_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = Progress(tmp_path / "metrics.jsonl", stream)
    shown.update()
    assert stream.getvalue() == ""
    now[0] += progress.PLAIN_EVERY_S
    shown.update()
    assert stream.getvalue() == "starting ... 0:10\n"
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"kind": "train", "step": 1, "total_steps": 9, "loss": 0.5}) + "\n"
    )
    now[0] += progress.PLAIN_EVERY_S
    shown.update()
    now[0] += progress.PLAIN_EVERY_S
    shown.update()
    assert stream.getvalue() == "starting ... 0:10\nstep 1/9  loss 0.5000\n"


def test_validations_do_not_keep_the_loss_from_being_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = Progress(tmp_path / "metrics.jsonl", stream)
    for step in range(1, 5):
        now[0] += 0.9 * progress.PLAIN_EVERY_S
        with (tmp_path / "metrics.jsonl").open("a") as file:
            for entry in ({"kind": "train", "total_steps": 9, "loss": 0.5}, {"kind": "validation", "accuracy": 0.5}):
                file.write(json.dumps({**entry, "step": step}) + "\n")
        shown.update()
    assert [line.split("/")[0] for line in stream.getvalue().splitlines() if "loss" in line] == ["step 2", "step 4"]
