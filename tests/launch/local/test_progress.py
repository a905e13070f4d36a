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


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_that_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_width", lambda stream: 100)
    stream = Terminal()
    shown = Progress(tmp_path / "metrics.jsonl", stream)
    for step, loss in ((1, 0.9), (2, 0.5)):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            entry = {"kind": "train", "step": step, "total_steps": 4, "loss": loss, "eta_s": 62.0, "memory_gb": 1.94}
            file.write(json.dumps(entry) + "\n")
        shown.update()
    lines = stream.getvalue().split("\r\x1b[K")
    assert lines == [
        "",
        "[███░░░░░░░░░]  1/4  loss 0.9000 ▁  1:02 left  1.9 GB",
        "[██████░░░░░░]  2/4  loss 0.5000 █▁  1:02 left  1.9 GB",
    ]
