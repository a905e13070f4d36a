"""Files that travel with the program are found."""

from __future__ import annotations

from sft_dist.recipe.files import shipped


def test_what_is_shipped_is_found() -> None:
    assert shipped("recipes", "text-classification", "quickstart.yaml").is_file()
