"""Batch and step arithmetic: exact, or an error whose suggestions really fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_dist.recipe.arithmetic import LARGEST_AUTO_MICRO_BATCH, batch_of, steps_of
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.units import amount_in_steps, bytes_of, check_amount, check_period, points_at, seconds_of


def recipe_of(**train: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "sums",
            "task": "text-classification",
            "model": {"path": "/nowhere"},
            "data": {"source": "/nowhere.csv"},
            "tuning": "full",
            "train": {"lr": 1e-3, **train},
        }
    )


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────────
micro_batches = st.one_of(st.just("auto"), st.integers(1, 64))


@pytest.mark.slow
@given(global_batch=st.integers(1, 2048), micro_batch=micro_batches, world_size=st.integers(1, 96))
def test_the_product_is_the_global_batch_or_the_error_names_values_that_fit(global_batch, micro_batch, world_size):
    try:
        batch = batch_of(recipe_of(global_batch=global_batch, micro_batch=micro_batch), world_size)
    except UserError as error:
        unit = world_size * (1 if micro_batch == "auto" else micro_batch)
        assert global_batch % unit != 0
        near = [int(text) for text in re.search(r"nearest that fit: ([\d or]+);", str(error))[1].split(" or ")]
        for value in near:
            again = batch_of(recipe_of(global_batch=value, micro_batch=micro_batch), world_size)
            assert again.world_size * again.micro_batch * again.accumulation == value
            assert abs(value - global_batch) < unit
        assert len(near) == (2 if global_batch > unit else 1)
        return
    assert batch.world_size * batch.micro_batch * batch.accumulation == batch.global_batch == global_batch
    assert batch.world_size == world_size
    if micro_batch != "auto":
        assert batch.micro_batch == micro_batch


@given(share=st.integers(1, 500), world_size=st.integers(1, 16))
def test_auto_takes_the_largest_micro_batch_that_divides(share, world_size):
    batch = batch_of(recipe_of(global_batch=share * world_size), world_size)
    assert batch.micro_batch <= LARGEST_AUTO_MICRO_BATCH
    larger = range(batch.micro_batch + 1, min(share, LARGEST_AUTO_MICRO_BATCH) + 1)
    assert not [size for size in larger if share % size == 0]


def test_a_misfit_is_told_in_the_terms_of_the_recipe():
    with pytest.raises(UserError) as caught:
        batch_of(recipe_of(global_batch=20, micro_batch=3), 2)
    said = str(caught.value)
    assert "train.global_batch: 20 cannot be divided exactly over 2 processes x micro-batch 3 (= 6)" in said
    assert "nearest that fit: 18 or 24" in said


# ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@given(rows=st.integers(1, 5000), global_batch=st.integers(1, 300), epochs=st.integers(1, 9))
def test_whole_epochs_use_every_row_with_a_short_last_batch(rows, global_batch, epochs):
    steps = steps_of(recipe_of(global_batch=global_batch, epochs=float(epochs)), rows)
    assert (steps.steps_per_epoch - 1) * global_batch < rows <= steps.steps_per_epoch * global_batch
    assert steps.total == epochs * steps.steps_per_epoch
    assert steps.save_points == tuple(steps.steps_per_epoch * turn for turn in range(1, epochs + 1))
    assert steps.eval_points == steps.save_points


def test_three_epochs_are_the_default_and_steps_replace_them():
    assert steps_of(recipe_of(global_batch=10), 95).total == 30
    assert steps_of(recipe_of(global_batch=10, steps=7), 95).total == 7
    assert steps_of(recipe_of(global_batch=10, epochs=0.25), 95).total == 3


@given(
    rows=st.integers(1, 3000),
    steps=st.integers(1, 400),
    save=st.integers(1, 120),
    evaluate=st.one_of(st.none(), st.integers(1, 120)),
    warmup=st.one_of(st.none(), st.integers(0, 900), st.floats(0, 99)),
)
def test_validated_steps_are_saved_and_both_end_with_the_last(rows, steps, save, evaluate, warmup):
    amounts = {
        "save_every": f"{save} steps",
        "eval_every": None if evaluate is None else f"{evaluate} steps",
        "warmup": None if warmup is None else f"{warmup} steps" if isinstance(warmup, int) else f"{warmup:.3f}%",
    }
    found = steps_of(recipe_of(steps=steps, **amounts), rows)
    assert set(found.eval_points) <= set(found.save_points)
    for points, every in ((found.save_points, None), (found.eval_points, evaluate or save)):
        assert points[-1] == steps
        assert list(points) == sorted(set(points))
        assert points[0] > 0
        if every:
            assert set(points) == {*range(every, steps + 1, every), steps}
    assert 0 <= found.warmup <= steps
    if isinstance(warmup, int):
        assert found.warmup == min(warmup, steps)


@given(tenths=st.integers(1, 40), per_epoch=st.integers(1, 300), epochs=st.integers(1, 5))
def test_parts_of_epochs_end_at_the_step_that_completes_them(tenths, per_epoch, epochs):
    total = per_epoch * epochs
    points = points_at(f"{tenths / 10} epochs", total, per_epoch)
    exact = {-(-tenths * per_epoch * turn // 10) for turn in range(1, 10 * total // tenths + 2)}
    assert points == sorted({step for step in exact if step < total} | {total})


@given(percent=st.integers(0, 99), total=st.integers(1, 10**6))
def test_a_percentage_is_rounded_up_without_floating_point_noise(percent, total):
    assert amount_in_steps(f"{percent}%", total, 1) == -(-percent * total // 100)


def test_a_part_that_is_whole_is_not_rounded_up():
    assert amount_in_steps("0.1 epochs", 1000, 30) == 3  # 0.1 * 30 is 3.0000000000000004
    assert points_at("0.1 epochs", 60, 30)[:3] == [3, 6, 9]


# ── units ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "text", ["6", "6 %%", "100%", "1.5 steps", "-1 steps", "ten steps", "1e3 steps", "", "5 step s"]
)
def test_amounts_without_a_right_unit_are_refused(text):
    with pytest.raises(ValueError, match="expected|whole"):
        check_amount(text)


@pytest.mark.parametrize("text", ["0 steps", "0 epochs", "10%", "0.0 epochs"])
def test_a_period_is_above_zero_and_no_percentage(text):
    with pytest.raises(ValueError, match="expected"):
        check_period(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90min", 5400), ("90m", 5400), ("2h30m", 9000), ("1d", 86400), ("1-12:00:00", 129600), ("00:00:30", 30)],
)
def test_times_in_seconds(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "90", "0h", "00:00:00", "1:60:00", "12:00", "30m2h", "1.5h"])
def test_times_that_could_be_misread_are_refused(text):
    with pytest.raises(ValueError, match="expected|go up to"):
        seconds_of(text)


@given(number=st.integers(1, 10**6), unit=st.sampled_from(["MB", "GB", "TB", "MiB", "GiB", "TiB"]))
def test_memory_in_bytes(number, unit):
    power = {"M": 2, "G": 3, "T": 4}[unit[0]]
    assert bytes_of(f"{number}{unit}") == number * (1024 if "i" in unit else 1000) ** power


@pytest.mark.parametrize("text", ["32", "32 gb", "0GB", "GB", "1KB", "-1GB"])
def test_memory_without_a_right_unit_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        bytes_of(text)


@given(millionths=st.integers(100, 3 * 10**6), per_epoch=st.integers(1, 50), total=st.integers(1, 60))
def test_however_short_the_period_every_point_is_a_step(millionths, per_epoch, total):
    points = points_at(check_period(f"{millionths / 10**6:.6f} epochs"), total, per_epoch)
    assert points == sorted(set(points))
    assert points[0] >= 1
    assert points[-1] == total
    if millionths * per_epoch <= 10**6:  # shorter than a step: every step is a point
        assert points == list(range(1, total + 1))


def test_a_period_too_short_to_mean_anything_is_refused():
    with pytest.raises(ValueError, match="at least 0.0001 epochs"):
        check_period("0.000001 epochs")
