"""Which message names which condition of a stratified split."""

from __future__ import annotations

import pytest

from sft_dist.data.splits import hold_out
from sft_dist.recipe.errors import UserError


@pytest.mark.parametrize(
    ("strata", "message"),
    [
        ([f"intent_{number % 77}" for number in range(600)], "77 classes do not fit into the 60 rows of test"),
        (["p"] * 599 + ["rare"], "equal shares: 'rare' \\(1\\)"),
    ],
)
def test_too_few_rows_and_too_small_a_class_are_told_apart(strata, message):
    with pytest.raises(UserError, match=message):
        hold_out(600, {"test": 0.1}, 0, strata)


def test_all_too_small_classes_are_named_with_the_rows_they_had():
    strata = ["p"] * 597 + ["once"] + ["twice"] * 2
    with pytest.raises(UserError, match=r"equal shares: 'once' \(1\)"):
        hold_out(600, {"test": 0.1}, 0, strata)
    with pytest.raises(UserError, match=r"equal shares: 'a' \(1\), 'b' \(1\)"):
        hold_out(12, {"test": 0.5}, 0, ["p"] * 10 + ["b", "a"])
    with pytest.raises(UserError, match=r"equal shares: 'twice' \(2\)"):  # one of the two is held out for test
        hold_out(12, {"test": 0.5, "validation": 0.2}, 0, ["p"] * 10 + ["twice"] * 2)
