"""A recipe that is refused leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from sft_dist.run.folder import RunFolder
from sft_dist.train import _remove_refused, main


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": {"path": "./none"}}, "model.path: no such file or folder"),
        ({"data": {"source": "./none.csv"}}, "data.source: no such file or folder"),
        ({"train": {"lr": 1e-3, "global_batch": 32}}, "train.global_batch"),
    ],
)
def test_what_a_plan_refuses_makes_no_folder(tiny_model, reviews, tmp_path, monkeypatch, capsys, change, expected):
    monkeypatch.setenv("WORLD_SIZE", "3")
    settings = {"task": "text-classification", "model": {"path": str(tiny_model)}, "data": {"source": str(reviews)}}
    (tmp_path / "my.yaml").write_text(json.dumps({**settings, "tuning": "full", "train": {"lr": 1e-3}, **change}))
    assert main([str(tmp_path / "my.yaml"), "--runs", str(tmp_path / "runs")]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_refused_later_is_removed_unless_something_was_trained(tmp_path):
    for trained in (False, True):
        folder = RunFolder(tmp_path / "runs/my/0123456789")
        (folder.attempts / "001").mkdir(parents=True)
        if trained:
            folder.metrics_file.touch()
        _remove_refused(folder)
        assert (tmp_path / "runs").exists() == trained
