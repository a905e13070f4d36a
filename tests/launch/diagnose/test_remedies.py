import pytest

from launch.diagnose.diagnosis import diagnose
from launch.diagnose.findings import HIGH, Finding
from launch.diagnose.remedies import command_of, diff_lines, format_value, remedy_of
from sft_dist.recipe.load import load
from tests.launch.diagnose.crafted import evidence
from tests.launch.diagnose.test_diagnosis import FAULTY


def remedy(cause, **numbers):
    run = FAULTY[cause]
    return remedy_of(Finding(cause, "", HIGH, numbers) if numbers else diagnose(run).findings[0], run), run


def test_the_next_recipe_is_a_diff_and_a_command():
    next_recipe, run = remedy("lr-too-high")
    assert diff_lines(next_recipe, run) == ["- train.lr: 0.1", "+ train.lr: 0.01"]
    assert command_of(next_recipe, "my recipe.yaml") == "sft-dist run 'my recipe.yaml' train.lr=0.01"


@pytest.mark.parametrize(
    ("cause", "changes"),
    [
        ("diverged", {"train.lr": 1e-4}),
        ("lr-too-low", {"train.lr": 1e-2}),
        ("over-fit", {"train.steps": 30}),
        ("under-fit", {"train.steps": 400}),
        ("bad-schedule", {"train.warmup": "10%"}),
        ("plateau", {"tuning": "full"}),
        ("loader-bound", {"data.workers": 4}),
        ("truncation", {"data.max_length": 150}),
        ("dead-class", {"train.loss": {"name": "cross-entropy", "class_weights": "balanced"}}),
        ("wrong-labels", {}),
    ],
)
def test_changes_of_each_cause(cause, changes):
    assert remedy(cause)[0].changes == changes


def test_length_is_changed_in_the_unit_of_the_recipe():
    run = evidence(settings={"train.steps": None, "train.epochs": 4.0})
    assert remedy_of(Finding("over-fit", "", HIGH, {"step": 25.0}), run).changes == {"train.epochs": 1.0}


def test_a_finding_that_no_setting_helps_has_advice_and_no_command():
    next_recipe, _ = remedy("wrong-labels")
    assert next_recipe.advice
    assert command_of(next_recipe, "my.yaml") == ""


@pytest.mark.parametrize("cause", FAULTY)
def test_every_command_makes_a_valid_recipe(cause, tmp_path):
    (tmp_path / "my.yaml").write_text(
        "task: text-classification\nmodel: {path: ./model}\ndata: {source: {train: ./a.csv, validation: ./b.csv}}\n"
        "tuning: {method: freeze, train_last_layers: 0}\ntrain: {lr: 1.0e-3, steps: 10, warmup: 10%}\n"
    )
    next_recipe, _ = remedy(cause)
    overrides = [f"{key}={format_value(value)}" for key, value in next_recipe.changes.items()]
    assert load(tmp_path / "my.yaml", overrides).task.type == "text-classification"
