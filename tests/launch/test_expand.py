"""Matrices become runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launch.expand import Run, expand
from launch.plan import Machine, plan_run
from launch.row_counts import RowCounts
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import read
from sft_dist.run.folder import run_id
from tests.launch.conftest import RECIPE


def runs_of(folder: Path, matrix: str = "", recipe: str = RECIPE) -> list[Run]:
    file = folder / "demo.yaml"
    file.write_text(recipe + matrix)
    return expand(read(file))


def problems_of(folder: Path, matrix: str) -> str:
    with pytest.raises(UserError) as caught:
        runs_of(folder, matrix)
    return caught.value.render()


def test_a_recipe_without_a_matrix_is_one_run(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path)
    assert run.point == {}
    assert run.id == run_id(run.recipe)


def test_axes_form_a_grid_and_the_last_changes_fastest(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "matrix:\n  train.lr: [0.1, 0.2]\n  train.seed: [1, 2, 3]\n")
    points = [(run.recipe.train.lr, run.recipe.train.seed) for run in runs]
    assert points == [(0.1, 1), (0.1, 2), (0.1, 3), (0.2, 1), (0.2, 2), (0.2, 3)]
    assert runs[4].point == {"train.lr": 0.2, "train.seed": 2}
    assert all(run.recipe.matrix is None for run in runs)


def test_zipped_values_go_together_and_combine_with_the_grid(tmp_path: Path) -> None:
    matrix = "matrix:\n  train.seed: [1, 2]\n  zip: [{train.lr: [0.1, 0.2], train.global_batch: [16, 64]}]\n"
    points = [(r.recipe.train.seed, r.recipe.train.lr, r.recipe.train.global_batch) for r in runs_of(tmp_path, matrix)]
    assert points == [(1, 0.1, 16), (1, 0.2, 64), (2, 0.1, 16), (2, 0.2, 64)]


def test_whole_sections_and_options_of_a_choice_can_vary(tmp_path: Path) -> None:
    matrix = "matrix:\n  tuning: [full, lora, {method: lora, r: 8}]\n"
    assert [run.recipe.tuning.model_dump().get("r") for run in runs_of(tmp_path, matrix)] == [None, 16, 8]
    shorthand = RECIPE.replace("tuning: full", "tuning: lora")
    ranks = runs_of(tmp_path, "matrix:\n  tuning.r: [4, 8]\n  train.optimizer: [sgd, adamw]\n", shorthand)
    assert [(run.recipe.tuning.model_dump()["r"], run.recipe.train.optimizer.name) for run in ranks] == [
        (4, "sgd"), (4, "adamw"), (8, "sgd"), (8, "adamw"),
    ]  # fmt: skip


def test_a_required_setting_may_come_from_the_matrix_alone(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "matrix: {train.lr: [0.1, 0.2]}\n", RECIPE.replace("lr: 1.0e-3, ", ""))
    assert [run.recipe.train.lr for run in runs] == [0.1, 0.2]


def test_every_id_is_the_hash_of_the_resolved_recipe_and_equal_to_that_of_the_same_recipe_alone(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "matrix:\n  train.lr: [0.1, 0.2]\n  tuning: [full, lora]\n  data.limit: [10, 20]\n")
    assert [run.id for run in runs] == [run_id(run.recipe) for run in runs]
    (alone,) = runs_of(
        tmp_path, "", RECIPE.replace("lr: 1.0e-3", "lr: 0.1").replace("rows.csv}", "rows.csv, limit: 10}")
    )
    assert runs[0].id == alone.id
    assert len({run.id for run in runs}) == 8


def test_every_wrong_value_is_reported_with_its_own_place(tmp_path: Path) -> None:
    text = problems_of(tmp_path, "matrix:\n  train.lr: [0.1, fast, -1]\n  train.seed: [1, 2]\n")
    assert "demo.yaml:8:19" in text
    assert "demo.yaml:8:25" in text
    assert text.count("train.lr") == 2


def test_a_wrong_value_after_good_ones_is_found_too(tmp_path: Path) -> None:
    text = problems_of(tmp_path, "matrix:\n  train.seed: [1, 2, -3]\n")
    assert "demo.yaml:8:22" in text


def test_an_unknown_key_path_gets_a_suggestion(tmp_path: Path) -> None:
    text = problems_of(tmp_path, "matrix:\n  train.sede: [1, 2]\n")
    assert "demo.yaml:8" in text
    assert "seed" in text


def test_settings_that_contradict_each_other_in_some_points_only_are_found(tmp_path: Path) -> None:
    text = problems_of(tmp_path, "matrix:\n  train.micro_batch: [16, 64]\n")
    assert "micro_batch" in text
    assert "demo.yaml:8:27" in text


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("matrix:\n  zip: [{train.lr: [0.1, 0.2], train.seed: [1]}]\n", "train.lr has 2, train.seed has 1"),
        ("matrix:\n  train.lr: 0.1\n", "expected a list"),
        ("matrix:\n  train.lr: []\n", "at least one value"),
        ("matrix:\n  name: [a, b]\n", "`name` cannot vary"),
        ("matrix:\n  train.lr: [0.1]\n  zip: [{train.lr: [0.2]}]\n", "in the matrix twice"),
        ("matrix:\n  tuning: [full]\n  tuning.r: [4]\n", "is inside `tuning`"),
        ("matrix:\n  train.lr: [0.1, 0.1]\n", "the same run twice"),
        ("matrix:\n  zip: {train.lr: [0.1]}\n", "expected a list of groups"),
        ("matrix: [1, 2]\n", "key paths with lists"),
        (f"matrix:\n  train.seed: {list(range(400))}\n  train.lr: {[i / 1000 for i in range(1, 300)]}\n", "at most 100,000"),
    ],
)  # fmt: skip
def test_a_matrix_that_makes_no_sense_is_refused(tmp_path: Path, matrix: str, message: str) -> None:
    assert message in problems_of(tmp_path, matrix)


def test_thousands_of_equal_mistakes_are_not_listed_thousands_of_times(tmp_path: Path) -> None:
    text = problems_of(tmp_path, f"matrix:\n  train.lr: {[-1.0 - i for i in range(500)]}\n")
    assert len(text.splitlines()) < 300


@pytest.mark.slow
def test_ten_thousand_runs_are_expanded_and_planned_in_seconds(tmp_path: Path) -> None:
    lrs, seeds = [i / 1e5 for i in range(1, 101)], list(range(100))
    started = time.process_time()  # of the processor: a busy machine is nobody's fault
    runs = runs_of(tmp_path, f"matrix:\n  train.lr: {lrs}\n  train.seed: {seeds}\n")
    rows, machine = RowCounts({"train": 4000, "validation": 500}), Machine(gpus=0, cores=2)
    plans = [plan_run(run, machine, rows, tmp_path / run.id, "python") for run in runs]
    took = time.process_time() - started
    assert len({plan.id for plan in plans}) == 10_000
    assert took < 8, "benchmarks/startup.py states the real figure, about a quarter of this"
