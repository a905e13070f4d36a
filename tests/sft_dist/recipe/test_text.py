"""Texts for people."""

from __future__ import annotations

from sft_dist.recipe.text import format_table, join_names, printable


def test_long_lists_of_names_are_cut() -> None:
    assert join_names(["a", "b"]) == "a, b"
    assert join_names(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
    assert join_names("abc", limit=2) == "a, b and 1 more"


def test_columns_of_a_table_are_aligned() -> None:
    assert (
        format_table(["run", "loss"], [["a", "0.5"], ["long name", ""]]) == "run        loss\na          0.5\nlong name"
    )


def test_control_characters_of_terminals_are_made_visible():
    text = "a\x1b]52;c;cm0=\x07b\x9b2Jc\u202ed\t\r\né"
    assert printable(text) == "a\\x1b]52;c;cm0=\\x07b\\x9b2Jc\\x202ed\t\r\né"
