"""What a recipe needs of the machine: packages, and a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_dist.recipe import machine
from sft_dist.recipe.load import load
from sft_dist.recipe.optimizers import NAMED_OPTIMIZERS
from tests.sft_dist.recipe.recipe_texts import write


@pytest.mark.parametrize(
    ("overrides", "path", "install"),
    [
        (["train.optimizer=lion_8bit"], "train.optimizer", "bitsandbytes"),
        (["train.optimizer=stable_adamw"], "train.optimizer", "torch-optimi"),
        (["train.optimizer=schedule_free_sgd", "train.schedule=constant"], "train.optimizer", "schedulefree"),
        (["train.liger=true"], "train.liger", "liger-kernel"),
        (["model.attention=flash_attention_2", "train.precision=bf16"], "model.attention", "flash-attn"),
    ],
)
def test_a_missing_package_is_said_with_how_to_get_it(
    overrides: list[str], path: str, install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load(write(tmp_path), overrides)
    monkeypatch.setattr(machine, "is_installed", lambda module: False)
    (problem,) = machine.missing_packages(recipe)
    assert problem.path == path
    assert f"pip install '{install}" in problem.hint
    monkeypatch.setattr(machine, "is_installed", lambda module: True)
    assert machine.missing_packages(recipe) == []


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        (["train.optimizer=paged_adamw_32bit"], "train.optimizer"),
        (["train.liger=true"], "train.liger"),
        (["model.attention=flex_attention"], "model.attention"),
        (["model.attention=flash_attention_2", "train.precision=bf16"], "model.attention"),
    ],
)
def test_what_only_a_gpu_can_do_is_named(overrides: list[str], path: str, tmp_path: Path) -> None:
    assert [one.path for one in machine.needs_gpu(load(write(tmp_path), overrides))] == [path]


@pytest.mark.parametrize("overrides", [[], ["train.optimizer=adamw_8bit"], ["model.attention=sdpa"]])
def test_what_a_cpu_can_do_is_not(overrides: list[str], tmp_path: Path) -> None:
    assert machine.needs_gpu(load(write(tmp_path), overrides)) == []


@pytest.mark.parametrize("name", [name for name, needs in NAMED_OPTIMIZERS.items() if needs.gpu])
def test_the_hint_for_a_paged_optimizer_is_one_that_a_cpu_has(name: str, tmp_path: Path) -> None:
    (problem,) = machine.needs_gpu(load(write(tmp_path), [f"train.optimizer={name}"]))
    named = problem.hint.removeprefix("such as ")
    assert named in {*NAMED_OPTIMIZERS, "adamw"}
