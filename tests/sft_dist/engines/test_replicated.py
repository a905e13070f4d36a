"""fp8 is refused where it would fail or do nothing."""

from __future__ import annotations

import pytest
from torch import nn

from sft_dist.engines.replicated import check_eight_bits, require_eight_bits
from sft_dist.recipe.errors import UserError


class Float8Linear(nn.Linear):
    """As torchao names what it has converted."""


def test_a_gpu_without_eight_bits_is_named() -> None:
    require_eight_bits((8, 9), "L4")
    require_eight_bits((9, 0), "H200")
    with pytest.raises(UserError, match=r"A100 does not support fp8: its compute capability is 8\.0"):
        require_eight_bits((8, 0), "A100")


def test_a_model_of_which_no_layer_was_converted_is_refused() -> None:
    check_eight_bits(nn.Sequential(nn.Linear(3, 3), Float8Linear(16, 16)))
    with pytest.raises(UserError, match="no layer of Sequential can compute in fp8"):
        check_eight_bits(nn.Sequential(nn.Linear(3, 3)))
