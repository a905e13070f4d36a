"""What the user reads about each kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.load import load
from tests.sft_dist.recipe.recipe_texts import GOOD, write

METHODS = ("full", "freeze", "bitfit", "lora", "qlora", "ia3", "prefix", "prompt")


def problems(tmp_path: Path, old: str, new: str) -> tuple[Problem, ...]:
    assert old in GOOD
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, GOOD.replace(old, new)))
    for problem in caught.value.problems:
        assert problem.mark, problem
        assert problem.mark.line, problem
        assert problem.path, problem
    return caught.value.problems


def only(tmp_path: Path, old: str, new: str) -> Problem:
    found = problems(tmp_path, old, new)
    assert len(found) == 1, [one.render() for one in found]
    return found[0]


@pytest.mark.parametrize(
    ("line", "path", "message", "hint"),
    [
        ("lr: '1e-4'", "train.lr", "expected a number, found text", "write 0.0001, without quotes"),
        ("lr: 1_0", "train.lr", "expected a number, found text", "write 10"),
        ("lr: 10%", "train.lr", "expected a number, found text", "write 0.1"),
        ("lr: true", "train.lr", "expected a number, found true/false", ""),
        ("lr:", "train.lr", "expected a number, found nothing", "give it a value, or remove the line"),
        ("lr: .nan", "train.lr", "expected a finite number", ""),
        ("lr: 1e999", "train.lr", "expected a finite number", ""),
        ("lr: 0", "train.lr", "expected more than 0", ""),
        ("lr: [1, 2]", "train.lr", "expected a number, found a list", ""),
        ("lr: 1\n  seed: 1e3", "train.seed", "expected a whole number, found a number", "write 1000"),
        ("lr: 1\n  seed: -1", "train.seed", "expected at least 0", ""),
        ("lr: 1\n  seed: 010", "train.seed", "expected a whole number, found text", "write 10"),
        ("lr: 1\n  seed: 4294967296", "train.seed", "expected less than 4,294,967,296", ""),
        ("lr: 1\n  deterministic: yes", "train.deterministic", "expected true or false, found text", "write true"),
        ("lr: 1\n  deterministic: off", "train.deterministic", "expected true or false, found text", "write false"),
        ("lr: 1\n  tracking: tensorboard", "train.tracking", "expected a list, found text", "write [tensorboard]"),
        ("lr: 1\n  micro_batch: atuo", "train.micro_batch", "expected a whole number or `auto`", "did you mean `auto`?"),
        ("lr: 1\n  micro_batch: 0", "train.micro_batch", "expected at least 1 or `auto`", ""),
        ("lr: 1\n  save_every: 5", "train.save_every", "expected a number with a unit: `200 steps` or `0.5 epochs`", ""),
        ("lr: 1\n  save_every: 5 weeks", "train.save_every", "expected a number with a unit: `200 steps` or `0.5 epochs`", ""),
        ("lr: 1\n  warmup: 100%", "train.warmup", "expected less than 100%", ""),
        ("lr: 1\n  batching: Bucket", "train.batching", "not one of the choices", "did you mean `bucketed`?"),
        ("lr: 1\n  optimizer: admw", "train.optimizer", "no such name", "did you mean `adamw`?"),
        ("lr: 1\n  optimizer: 5", "train.optimizer", "expected a name, or a mapping (`key: value`), found a whole number", ""),
        ("lr: 1\n  optimizer: {eps: 1}", "train.optimizer", "`name` is missing", "such as name: adamw"),
        ("lr: 1\n  optimizer: {namee: sgd}", "train.optimizer", "`name` is missing", "did you mean `name` by `namee`?"),
        ("lr: 1\n  optimizer: {name: adamw, betas: [1]}", "train.optimizer.betas.0", "expected less than 1", ""),
        ("lr: 1\n  optimizer: {name: adamw, betas: [0.1]}", "train.optimizer.betas", "expected 2 values", ""),
        ("lr: 1\n  early_stopping: 3", "train.early_stopping", "expected a mapping (`key: value`), found a whole number", ""),
        ("lr: 1\n  loss: {name: cross-entropy, class_weights: {a: -1}}", "train.loss.class_weights.a", "expected more than 0", ""),
    ],
)  # fmt: skip
def test_a_wrong_value_is_explained(line: str, path: str, message: str, hint: str, tmp_path: Path) -> None:
    problem = only(tmp_path, "lr: 1e-4", line)
    assert (problem.path, problem.message, problem.hint) == (path, message, hint)


def test_a_value_is_shown_as_it_was_written(tmp_path: Path) -> None:
    assert only(tmp_path, "r: 8", "r: 8.50").value == "8.50"
    assert only(tmp_path, "r: 8", "r: '8'").value == "'8'"
    assert only(tmp_path, "r: 8", "r: Null").value == "Null"
    assert only(tmp_path, "r: 8", "r:").value == "nothing after the `:`"


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    assert len(only(tmp_path, "r: 8", f"r: {'x' * 5000}").value or "") <= 60


def test_an_unknown_key_lists_the_valid_ones_and_guesses(tmp_path: Path) -> None:
    problem = only(tmp_path, "epochs: 2", "epoch: 2")
    assert problem.render() == (
        f"{problem.mark}: train.epoch: unknown key `epoch` in train\n"
        f"    valid: {', '.join(problem.valid)}\n    did you mean `epochs`?"
    )
    assert {"epochs", "lr", "seed"} < set(problem.valid)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rate", "train.lr"),
        ("lr", "train.lr"),
        ("batch_size", "train.global_batch"),
        ("evaluation", "evaluate"),
    ],
)
def test_a_key_in_the_wrong_section_or_by_another_tools_name_is_recognised(
    key: str, meant: str, tmp_path: Path
) -> None:
    problem = only(tmp_path, "task:", f"{key}: 1\ntask:")
    assert f"`{meant}`" in problem.hint


def test_a_dotted_key_in_a_file_is_explained(tmp_path: Path) -> None:
    assert only(tmp_path, "task:", "train.seed: 1\ntask:").hint.endswith("in a file: train: {seed: ...}")


def test_a_setting_of_another_choice_says_whose_it_is(tmp_path: Path) -> None:
    problem = only(tmp_path, "method: lora", "method: full")
    assert problem.message == "`r` belongs to tuning method `lora` or `qlora`; this recipe says `full`"
    problem = only(tmp_path, "lr: 1e-4", "lr: 1\n  schedule: {name: cosine, power: 2}")
    assert problem.message == "`power` belongs to train schedule name `polynomial`; this recipe says `cosine`"


def test_a_wrong_choice_lists_all_and_guesses(tmp_path: Path) -> None:
    problem = only(tmp_path, "method: lora", "method: Lorra")
    assert (problem.path, problem.value, problem.valid) == ("tuning.method", "Lorra", METHODS)
    assert problem.hint == "did you mean `lora`?"


def test_a_wrong_task_is_shown_where_it_is_written(tmp_path: Path) -> None:
    problem = only(tmp_path, "task: text-classification", "task: text-clasification")
    assert (problem.path, str(problem.mark)[-4:]) == ("task", ":1:7")
    assert problem.hint == "did you mean `text-classification`?"


def test_a_missing_key_is_shown_at_its_section_with_what_it_is_for(tmp_path: Path) -> None:
    problem = only(tmp_path, "  lr: 1e-4\n", "")
    assert (problem.path, problem.message, problem.hint) == ("train.lr", "`lr` is missing", "lr: Peak learning rate.")
    assert problem.mark
    assert problem.mark.line == 9


def test_members_of_a_union_make_one_problem(tmp_path: Path) -> None:
    problem = only(tmp_path, "source: ./train.csv", "source: 5")
    assert problem.message == "expected text, a list or a mapping (`key: value`), found a whole number"
    found = problems(tmp_path, "source: ./train.csv", "source: {tran: a.csv, test: 5}")
    assert [one.path for one in found] == ["data.source.train", "data.source.tran", "data.source.test"]
    found = problems(tmp_path, "source: ./train.csv", "source: a\n  where: {a: [1, null], str: {b: c}}")
    assert [one.path for one in found] == ["data.where.a.1", "data.where.str"]


def test_numbers_as_labels_are_to_be_quoted(tmp_path: Path) -> None:
    found = problems(tmp_path, "data:", "data:\n  labels: [0, 1]")
    assert [one.path for one in found] == ["data.labels.0", "data.labels.1"]
    assert found[0].hint == 'to have it as text, put it in quotes: "0"'


def test_a_rule_between_settings_points_at_the_idle_one(tmp_path: Path) -> None:
    problem = only(tmp_path, "task: text-classification", "task: {type: text-classification, threshold: 0.3}")
    assert (problem.path, problem.value) == ("task.threshold", "0.3")


def test_every_problem_is_reported_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        GOOD.replace("path:", "pth:").replace("r: 8", "r: 0").replace("lr: 1e-4", "lr: fast").replace("task:", "tsk:")
    )
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, text))
    paths = [one.path for one in caught.value.problems]
    assert set(paths) == {"task", "tsk", "model.path", "model.pth", "tuning.r", "train.lr"}
    lines = [one.mark.line for one in caught.value.problems if one.mark]
    assert lines == sorted(lines)


def test_thousands_of_problems_are_cut_off(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, GOOD.replace("data:", f"data:\n  labels: {list(range(2000))}")))
    assert caught.value.problems[-1].message == "and 1,950 more problems"


def test_nothing_of_the_validator_shines_through(tmp_path: Path) -> None:
    text = GOOD.replace("r: 8", "r: x\n  alpha: []").replace("lr: 1e-4", "lr:\n  loss: 3\n  schedule: {power: 1}")
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, text + "resources: 5\nmatrix: {a: 1, zip: 3}\nevaluate:\n"))
    said = caught.value.render().lower()
    assert len(caught.value.problems) == 9
    for word in ("pydantic", "http", "input should", "union", "constrained", "dict", "instance", "tag", "extra"):
        assert word not in said
