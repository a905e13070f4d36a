"""Runs are called by the settings in which they differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_dist.run.varying import describe_settings, format_setting, naming_settings, varying_between, varying_settings


def test_runs_are_called_by_settings_that_all_have_if_these_tell_them_apart() -> None:
    full = {"tuning.method": "full", "train.lr": 1e-4, "train.seed": 1, "train.epochs": 2.0}
    lora = {"tuning.method": "lora", "tuning.r": 8, "train.lr": 1e-4, "train.seed": 2, "train.epochs": 2.0}
    assert naming_settings(varying_settings({"a": full, "b": lora})) == {
        "a": {"tuning.method": "full", "train.seed": 1},
        "b": {"tuning.method": "lora", "train.seed": 2},
    }
    assert varying_settings({"a": full, "b": lora})["b"] == {"tuning.method": "lora", "tuning.r": 8, "train.seed": 2}
    smoothed = {"train.lr": 1e-4, "train.loss.label_smoothing": 0.4}
    assert naming_settings(varying_settings({"a": {"train.lr": 1e-4, "train.loss": None}, "b": smoothed})) == {
        "a": {}, "b": {"train.loss.label_smoothing": 0.4},
    }  # fmt: skip
    assert varying_settings({"a": full}) == {"a": {}}
    assert varying_settings({}) == {}


def test_name_and_description_do_not_tell_runs_apart_and_an_unreadable_recipe_hides_no_other(tmp_path: Path) -> None:
    for name, text in (
        ("a", '{"name": "x", "train": {"lr": 0.1}}'),
        ("b", '{"name": "y", "train": {"lr": 0.2}}'),
        ("c", "{"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(text)
    folders = sorted(tmp_path.iterdir())
    assert [describe_settings(settings) for settings in varying_between(folders).values()] == ["lr=0.1", "lr=0.2", ""]


def test_settings_are_called_by_their_last_words_unless_two_end_alike() -> None:
    assert describe_settings({"train.lr": 1e-4, "train.seed": 2}) == "lr=1e-4 seed=2"
    assert describe_settings({"train.seed": 1, "data.split.seed": 2}) == "train.seed=1 data.split.seed=2"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (0.1, "0.1"), (2.0, "2"), (0.0, "0"), (-1e-3, "-1e-3"), (3, "3"), (None, "None"), ("x" * 50, "x" * 37 + "...")],
)  # fmt: skip
def test_numbers_are_written_as_recipes_write_them(value: object, text: str) -> None:
    assert format_setting(value) == text
