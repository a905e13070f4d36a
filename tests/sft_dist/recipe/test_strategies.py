"""What a strategy cannot be combined with is said when the recipe is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import load
from tests.sft_dist.recipe.recipe_texts import write


@pytest.mark.parametrize(
    ("settings", "path", "reason"),
    [
        (["train.strategy=zero2", "train.optimizer=adafactor"], "train.optimizer", "updates a weight as a whole"),
        (["train.strategy=zero1", "train.optimizer=adagrad"], "train.optimizer", "replaces Adagrad"),
        (["train.strategy=zero3", "train.precision=fp8"], "train.precision", "no 8-bit types"),
        (
            ["train.strategy={name: zero3, offload_optimizer: nvme, nvme_path: /fast}"],
            "train.strategy.offload_optimizer",
            "no checkpoint",
        ),
    ],
)
def test_refused_with_zero(tmp_path: Path, settings: list[str], path: str, reason: str) -> None:
    with pytest.raises(UserError) as error:
        load(write(tmp_path), settings)
    (problem,) = error.value.problems
    assert problem.path == path
    assert reason in problem.message
    assert problem.valid
