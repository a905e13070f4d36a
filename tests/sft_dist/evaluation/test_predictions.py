"""Kept predictions give the scores that were recorded, and are never those of other weights."""

from __future__ import annotations

import stat
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from sft_dist.checkpoints.store import Checkpoint
from sft_dist.data.rows import ROW, Rows
from sft_dist.evaluation.predictions import (
    SplitPredictions,
    _compressed,
    flatten,
    from_columns,
    keep_predictions,
    predictions_file,
    read_predictions,
    to_columns,
    unflatten,
)
from sft_dist.recipe.files import write_bytes
from sft_dist.recipe.tasks import TASKS
from sft_dist.run.folder import RunFolder
from tests.sft_dist.evaluation.task_predictions import CASES


def kept(predictions, groups=None):
    return SplitPredictions(predictions, np.arange(len(predictions)) + 100, groups, "digest")


def test_every_task_is_here():
    assert {CASES[name]()[0].recipe.task.type for name in CASES} == set(TASKS)


@pytest.mark.parametrize("name", CASES)
def test_scores_of_kept_predictions_are_those_recorded(name, tmp_path):
    task, predictions, examples = CASES[name]()
    file = tmp_path / "step-00000004.test.predictions.npz"
    write_bytes(file, _compressed(to_columns(kept(predictions, np.arange(len(predictions)) // 2), "weights")))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    back = read_predictions(file, "weights")
    assert back is not None
    recorded = task.score(predictions, examples, None)
    assert task.score(back.predictions, examples, None) == recorded
    assert any(value is not None for value in recorded.values())
    assert back.rows.tolist() == [*range(100, 100 + len(predictions))]
    assert back.groups is not None
    assert back.groups.tolist() == [i // 2 for i in range(len(predictions))]
    assert [type(value) for value in back.predictions] == [type(value) for value in predictions]
    assert [path.name for path in tmp_path.iterdir()] == [file.name], "nothing is left of the writing"


@pytest.mark.parametrize(
    "values",
    [
        [],
        [None, None],
        ["", "\ud800", "é\0", ""],
        [True, False],
        [3, -(2**62)],
        [0.1, float("inf")],
        [np.float32(0.1), np.float32(7)],
        [[], [1, 2], []],
        [[["a"], []], []],
        [{"b": 1, "a": (None, "x")}, {"b": 2, "a": (None, "")}],
        [np.zeros((0, 4)), np.ones((2, 4))],
        [np.int64(3), np.int64(300)],
        [np.array([2**40, -1]), np.array([], dtype=np.int64)],
    ],
    ids=repr,
)
def test_values_come_back_with_their_types(values):
    form, columns = flatten(values)
    back = unflatten(form, columns, len(values))
    assert repr(back) == repr(values)
    assert [getattr(v, "dtype", None) for v in back] == [getattr(v, "dtype", None) for v in values]


@pytest.mark.parametrize(
    "values", [[1, "a"], [object()], [{"a": 1}, {"b": 1}], [np.array(["a"])], [(1,), (1, 2)]], ids=range(5)
)
def test_values_without_a_form_are_refused(values):
    with pytest.raises(TypeError):
        flatten(values)


def test_other_weights_and_damaged_files_give_nothing(tmp_path):
    columns = to_columns(kept(["a", "b"]), "weights")
    assert from_columns(columns, "weights") is not None
    assert from_columns(columns, "other weights") is None
    file = tmp_path / "p.npz"
    write_bytes(file, _compressed(columns))
    content = file.read_bytes()
    assert read_predictions(file, "weights") is not None
    assert read_predictions(tmp_path / "absent.npz", "weights") is None
    file.write_bytes(content[: len(content) // 2])
    assert read_predictions(file, "weights") is None
    np.savez(file, about=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert read_predictions(file, "weights") is None


def test_tags_and_counts_take_little_space():
    _, columns = flatten([["B-PER", "O", "O", "O"]] * 1000)
    assert sum(column.nbytes for column in columns.values()) < 6000
    _, columns = flatten([np.full((3, 3), 200, dtype=np.int64)] * 10)
    assert columns["prediction.values"].dtype == np.uint8


def test_predictions_that_cannot_be_kept_leave_no_older_ones(tmp_path):
    checkpoint = Checkpoint(RunFolder(tmp_path).checkpoint(1), 1)
    checkpoint.path.mkdir(parents=True)
    (checkpoint.path / "manifest.json").write_text("{}")
    rows = Rows(Dataset.from_dict({"text": ["a", "b"], ROW: [0, 1]}))
    data: Any = SimpleNamespace(examples={"test": rows}, splits={"test": rows}, contents={"test": "rows"})
    keep_predictions(checkpoint, "test", ["x", "y"], data)
    assert read_predictions(predictions_file(checkpoint, "test"), checkpoint.fingerprint()) is not None
    keep_predictions(checkpoint, "test", [object(), object()], data)
    assert read_predictions(predictions_file(checkpoint, "test"), checkpoint.fingerprint()) is None


def test_losses_of_examples_are_kept_where_they_were_recorded():
    losses = np.array([[1.5, 0.0], [0.25, 1e-9]])
    content = SplitPredictions(["a", "b"], np.arange(2), None, "digest", losses)
    back = from_columns(to_columns(content, "weights"), "weights")
    assert back.losses.tolist() == losses.tolist()
    assert from_columns(to_columns(kept(["a", "b"]), "weights"), "weights").losses is None
