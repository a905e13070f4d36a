"""Which message names which condition of a stratified split."""

from __future__ import annotations

import pytest

from sft_dist.data.splits import hold_out
from sft_dist.recipe.errors import UserError


@pytest.mark.parametrize(
    ("strata", "message"),
    [
        ([f"intent_{number % 77}" for number in range(600)], "77 classes do not fit into the 60 rows of test"),
        (["p"] * 599 + ["rare"], "class 'rare' has 1 rows"),
    ],
)
def test_too_few_rows_and_too_small_a_class_are_told_apart(strata, message):
    with pytest.raises(UserError, match=message):
        hold_out(600, {"test": 0.1}, 0, strata)
