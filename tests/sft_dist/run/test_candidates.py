"""Names of candidates, and what `--average` takes."""

from __future__ import annotations

import pytest

from sft_dist.recipe.errors import UserError
from sft_dist.run.candidates import candidate_name, members_in, parse_averaging
from sft_dist.run.folder import RunFolder


@pytest.mark.parametrize("text", ["greedy", "last:2", "last:10"])
def test_averagings_are_read_as_they_are_written(text: str) -> None:
    assert str(parse_averaging(text)) == text


@pytest.mark.parametrize("text", ["", "last", "last:", "last:1", "last:-3", "last:x", "greedy:3", "Greedy"])
def test_others_are_refused_with_what_is_valid(text: str) -> None:
    with pytest.raises(UserError, match="last:K, greedy"):
        parse_averaging(text)


def test_a_candidate_is_called_by_its_steps() -> None:
    assert candidate_name(300) == "step 300"
    assert candidate_name(300, (100, 200, 300)) == "mean of steps 100, 200, 300"
    assert candidate_name(900, range(100, 1000, 100)) == "mean of 9 steps from 100 to 900"


@pytest.mark.parametrize("members", [None, "12", [1, "2"], [True, 2], {"1": 2}])
def test_members_of_a_damaged_file_are_none(members: object) -> None:
    assert members_in({"members": members}) == ()
    assert members_in({"members": [4, 8]}) == (4, 8)


def test_each_mean_has_a_folder_of_its_own(tmp_path) -> None:
    folder = RunFolder(tmp_path)
    names = {folder.candidate(8, members).name for members in ((4, 8), (2, 8), (48,), (4, 6, 8))}
    assert len(names) == 4
    assert folder.candidate(8) == folder.checkpoint(8)
