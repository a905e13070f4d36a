"""What differs between two runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from launch.diff import MAX_ROWS, compare_curves, compare_facts, compare_runs, describe, losses, show_difference
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_json
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import make_recipe

START = {"host": "a", "device": "CPU", "world_size": 2, "torch": "2.13", "packages": {"numpy": "2.4"}}


def make_run(path: Path, curve: dict[int, float | None], start: dict[str, Any] = START, **changes: object) -> RunFolder:
    """A run folder with all that a comparison reads."""
    folder = RunFolder(path)
    folder.create(make_recipe(**changes), durable=False)
    (folder.source / "sft_dist").mkdir(parents=True)
    (folder.source / "sft_dist/loop.py").write_text("step = 1\n")
    write_json(folder.splits_file, {"train": {"rows": 96, "digest": "d" * 64, "contents": "c" * 64, "ids": [1]}})
    write_json(folder.plan_file, {"nodes": 1, "strategy": {"name": "ddp"}, "batch": {"micro_batch": 8}})
    write_json(folder.new_attempt().start_file, start)
    lines = [json.dumps({"kind": "train", "step": step, "loss": loss}) + "\n" for step, loss in curve.items()]
    folder.metrics_file.write_text("".join(lines))
    return folder


def test_a_run_does_not_differ_from_one_that_is_alike(tmp_path):
    a, b = (make_run(tmp_path / "demo" / name, {1: 0.5, 2: 0.4}) for name in ("0123456789", "0123456789-2"))
    difference = compare_runs(a.path, b.path)
    assert difference.is_same_curve
    assert not any(section.differences or section.unrecorded for section in difference.sections.values())
    text = describe(difference)
    assert "recipe: the same" in text
    assert "training loss: identical at all 2 steps that both runs logged, up to step 2" in text


def test_each_section_names_what_differs_with_both_values(tmp_path):
    a = make_run(tmp_path / "demo/0123456789", {1: 0.5, 2: 0.4, 3: 0.3})
    start = {**START, "host": "b", "packages": {"numpy": "2.5", "peft": "0.21"}}
    b = make_run(tmp_path / "demo/9876543210", {1: 0.5, 2: 0.41, 3: 0.2}, start, train={"lr": 2e-3})
    (b.source / "sft_dist/loop.py").write_text("step = 2\n")
    (b.source / "sft_dist/extra.py").touch()
    write_json(b.splits_file, {"train": {"rows": 97, "digest": "d" * 64, "contents": "e" * 64}})
    write_json(b.plan_file, {"nodes": 1, "strategy": {"name": "fsdp2"}, "batch": {"micro_batch": 8}})
    found = json.loads(show_difference(a.path, b.path, as_json=True))
    differences = {name: section["differences"] for name, section in found["sections"].items()}
    assert differences["recipe"] == {"train.lr": [1e-3, 2e-3]}
    assert set(differences["code"]) == {"sft_dist/loop.py", "sft_dist/extra.py"}
    assert differences["code"]["sft_dist/extra.py"][0] is None
    assert differences["data"] == {"train rows": [96, 97], "train contents": ["c" * 12, "e" * 12]}
    assert differences["environment"] == {"numpy": ["2.4", "2.5"], "peft": [None, "0.21"]}
    assert differences["hardware"] == {"host": ["a", "b"], "strategy.name": ["ddp", "fsdp2"]}
    assert found["curves"]["train"]["first_step"] == 2
    text = show_difference(a.path, b.path, as_json=False)
    assert "identical up to step 1, differs from step 2 on: 0.4 and 0.41" in text
    assert "largest difference 0.1 at step 3 of 3" in text


def test_what_an_older_run_did_not_record_is_not_called_a_difference(tmp_path):
    a = make_run(tmp_path / "demo/0123456789", {1: 0.5}, {"host": "a"})
    b = make_run(tmp_path / "demo/9876543210", {1: 0.5})
    section = compare_runs(a.path, b.path).sections["environment"]
    assert section.differences == {}
    assert section.unrecorded == ("demo/0123456789",)
    assert "environment: not recorded by demo/0123456789" in describe(compare_runs(a.path, b.path))


def test_a_step_that_was_trained_again_counts_once_and_a_torn_line_not_at_all(tmp_path):
    folder = make_run(tmp_path / "demo/0123456789", {1: 0.5, 2: 0.4})
    with folder.metrics_file.open("a") as file:
        file.write(
            '{"kind": "train", "step": 2, "loss": 0.45}\n{"kind": "validation", "step": 2, "loss": 9.0}\n{"kind"'
        )
    assert losses(folder, "train") == {1: 0.5, 2: 0.45}


@pytest.mark.parametrize(
    ("a", "b", "first", "largest"),
    [
        ({1: 0.1, 2: 0.2}, {2: 0.2, 3: 0.9}, None, None),  # only step 2 is in both
        ({1: 0.1}, {1: math.nextafter(0.1, 1)}, 1, 1.4e-17),
        ({1: None}, {1: None}, None, None),  # both NaN
        ({1: None}, {1: 0.1}, 1, None),
        ({}, {1: 0.1}, None, None),
    ],
)
def test_curves_part_at_the_first_step_with_another_bit(a, b, first, largest):
    curve = compare_curves(a, b)
    assert curve.first_step == first
    assert curve.largest == (None if largest is None else pytest.approx(largest, rel=0.5))
    assert curve.num_steps == len(a.keys() & b.keys())


def test_curves_without_a_common_step_are_not_the_same(tmp_path):
    a, b = make_run(tmp_path / "demo/0123456789", {1: 0.5}), make_run(tmp_path / "demo/9876543210", {2: 0.5})
    assert not compare_runs(a.path, b.path).is_same_curve


def test_a_long_table_is_cut_and_says_so():
    section = compare_facts({str(number): 0 for number in range(30)}, {"0": 1}, ("a", "b"))
    assert len(section.differences) == 30 > MAX_ROWS


def test_a_folder_without_a_recipe_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        compare_runs(tmp_path, tmp_path)


@pytest.mark.parametrize("value", [True, 3, "x", [1], {"a": 1}, {"train": 1, "packages": [2], "batch": 3}])
@pytest.mark.parametrize("name", ["plan.json", "splits.json", "plugins.json", "attempts/001/start.json"])
def test_values_of_other_types_are_compared_or_not_recorded(tmp_path, name, value):
    a, b = (make_run(tmp_path / "demo" / run, {1: 0.5}) for run in ("0123456789", "9876543210"))
    write_json(b.path / name, value)
    assert "training loss: identical at all 1 steps" in describe(compare_runs(a.path, b.path))


def test_a_loss_that_is_no_number_was_not_logged(tmp_path):
    folder = make_run(tmp_path / "demo/0123456789", {1: 0.5})
    with folder.metrics_file.open("a") as file:
        file.write('{"kind": "train", "step": 2, "loss": "0.4"}\n')
    assert losses(folder, "train") == {1: 0.5}
