"""Lines of `metrics.jsonl`: which steps have one, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from sft_dist.recipe.arithmetic import Steps
from sft_dist.training.metrics_logger import MetricsLogger, Records
from sft_dist.training.progress import Progress


def records(file: Path | None, steps_per_epoch: int | None = 4) -> Records:
    return Records(file, 2, Steps(steps_per_epoch, 10, 0, (), ()), Progress(step=6))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_names_step_and_epoch_and_has_null_for_nan(tmp_path):
    records(tmp_path / "m").write("train", {"loss": float("nan"), "lr": 0.5})
    (line,) = lines(tmp_path / "m")
    assert line.pop("time") > 0
    assert line == {"kind": "train", "attempt": 2, "step": 6, "total_steps": 10, "epoch": 1.5, "loss": None, "lr": 0.5}


def test_the_epochs_of_a_stream_are_those_completed(tmp_path):
    stream = records(tmp_path / "m", steps_per_epoch=None)
    stream.write("train", {}, step=3)
    stream.progress.stream = {"place": {"epoch": 1}}
    stream.write("train", {})
    assert [(line["step"], line["epoch"]) for line in lines(tmp_path / "m")] == [(3, None), (6, 1.0)]


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records(None).write("train", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("log_every", "steps"), [(1, [7, 8, 9, 10]), (3, [7, 9, 10])])
def test_the_first_step_the_last_and_every_nth_are_logged(tmp_path, log_every, steps):
    metrics = MetricsLogger(records(tmp_path / "m"), Accelerator(cpu=True), log_every)
    for step in range(7, 11):
        metrics.records.progress.step = step
        metrics.log_step(1.0, 0.1, 2.0, 8)
    assert [line["step"] for line in lines(tmp_path / "m")] == steps
    assert {line["grad_norm"] for line in lines(tmp_path / "m")} == {2.0}
    assert all(0.01 < line["memory_gb"] < 1000 for line in lines(tmp_path / "m"))
