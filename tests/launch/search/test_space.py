"""What a search may vary: each mistake has its place in the recipe, and what is valid."""

from __future__ import annotations

import pytest

from launch.search.definition import read_definition
from launch.search.space import run_of
from sft_dist.recipe.errors import UserError
from tests.launch.conftest import Workplace
from tests.launch.search.conftest import BASE, define


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("space: {train.lrr: {log: [1.0e-5, 1.0e-3]}}", "8:11: train.lrr: unknown key `lrr` in train"),
        ("space: {train.lrr: {log: [1.0e-5, 1.0e-3]}}", "did you mean `lr`?"),
        ("space: {train.lr: {lgo: [1.0e-5, 1.0e-3]}}", "unknown key `lgo` in search.space.train.lr"),
        ("space: {train.lr: {lgo: [1.0e-5, 1.0e-3]}}", "did you mean `log`?"),
        ("space: {train.lr: {log: [1.0e-3, 1.0e-5]}}", "`log` needs the smaller number first"),
        ("space: {train.lr: {log: [0, 1.0e-5]}}", "`log` needs numbers above zero"),
        ("space: {train.lr: {log: [1.0e-5, 1.0e-3], choice: [1.0]}}", "give exactly one of `choice`, `log`, `float` and `int`"),
        ("space: {train.lr: {float: [0.0, 1.0]}}", "train.lr: expected more than 0"),
        ("space: {name: {choice: [a, b]}}", "cannot vary: it does not change what a run does"),
        ("space: {}", "search.space"),
        ("space: {train.lr: {log: [1.0e-5, 1.0e-3]}}\n  sampler: grid", "a grid needs finitely many values"),
        ("space: {train.lr: {choice: [1.0, 1.0]}}", "a choice stands there twice"),
        ("space: {train.lr: {log: [1.0e-5, 1.0e-3], when: {train.sed: 1}}, train.seed: {int: [0, 9]}}", "did you mean `train.seed`?"),
        ("space: {train.lr: {log: [1.0e-5, 1.0e-3], when: {tuning: lora}}, tuning: {choice: [full]}}", "tuning never has this value"),
        ("space: {train.lr: {choice: [1.0], when: {train.seed: 1}}, train.seed: {int: [0, 9], when: {train.lr: 1.0}}}", "form a cycle"),
        ("space: {train.lr: {log: [1.0e-5, 1.0e-3]}}\n  metric: acuracy", "did you mean `accuracy`?"),
        ("space: {train.lr: {log: [1.0e-5, 1.0e-3]}}\n  sampler: gp\n  pruning: asha", "asha finishes few"),
        ("space: {train.lr: {log: [1.0e-5, 1.0e-3]}}\n  pruning: ahsa", "did you mean `asha`?"),
    ],
)  # fmt: skip
def test_mistakes(workplace: Workplace, search: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        define(workplace, f"search:\n  {search}\n")
    assert message in caught.value.render()
    assert "demo.yaml:" in caught.value.render()


def test_a_recipe_without_a_search_or_with_a_matrix_is_refused(workplace: Workplace) -> None:
    with pytest.raises(UserError, match="has no `search` section"):
        read_definition(str(workplace.recipe), [], workplace.path)
    workplace.recipe.write_text(BASE + "matrix: {train.seed: [1, 2]}\nsearch: {space: {train.lr: {choice: [1.0]}}}\n")
    with pytest.raises(UserError, match="a matrix or a search, not both"):
        read_definition(str(workplace.recipe), [], workplace.path)


def test_what_the_recipe_lacks_may_be_in_the_space(workplace: Workplace) -> None:
    workplace.recipe.write_text(
        BASE.replace("lr: 1.0e-3, ", "") + "search: {space: {train.lr: {log: [1.0e-5, 1.0e-3]}}}\n"
    )
    definition = read_definition(str(workplace.recipe), [], workplace.path)
    assert run_of(definition.source, {"train.lr": 1e-4}).recipe.train.lr == 1e-4


def test_conditional_settings_of_a_choice(workplace: Workplace) -> None:
    text = (
        "search: {sampler: grid, space: {train.optimizer.momentum: {choice: [0.5, 0.9], when: {train.optimizer: sgd}}, "
        "train.optimizer: {choice: [adamw, sgd]}}}\n"
    )
    definition = define(workplace, text)
    points = list(definition.space.grid())
    assert points == [
        {"train.optimizer": "adamw"},
        {"train.optimizer": "sgd", "train.optimizer.momentum": 0.5},
        {"train.optimizer": "sgd", "train.optimizer.momentum": 0.9},
    ]
    recipes = [run_of(definition.source, point).recipe for point in points]
    assert [getattr(recipe.train.optimizer, "momentum", None) for recipe in recipes] == [None, 0.5, 0.9]


def test_a_space_key_can_be_replaced_on_the_command_line(workplace: Workplace) -> None:
    text = "search: {space: {train.lr: {log: [1.0e-5, 1.0e-3]}}}\n"
    definition = define(
        workplace, text, "search.space.train.lr={choice: [1.0, 2.0]}", "search.space.train.seed={int: [1, 2]}"
    )
    assert definition.space.dimensions["train.lr"].choice == [1.0, 2.0]
    assert list(definition.space.dimensions) == ["train.lr", "train.seed"]


def test_choices_of_models_are_found_beside_the_recipe(workplace: Workplace) -> None:
    text = "search: {space: {model.path: {choice: [./model, org/name]}}}\n"
    definition = define(workplace, text)
    assert definition.space.dimensions["model.path"].choice == [str(workplace.path / "model"), "org/name"]
