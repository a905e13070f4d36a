"""The page of the data check."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sft_dist.quality.page import to_html
from sft_dist.quality.preview import Panel
from sft_dist.quality.report import Report


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["before, 28 x 28"], ["28 x 28"]),
        (["before"], []),
        (["before, 28 x 28", "after augmentation"], ["before, 28 x 28", "after augmentation"]),
    ],
)
def test_an_example_is_before_augmentation_only_where_there_is_an_after(
    captions: list[str], expected: list[str]
) -> None:
    example = SimpleNamespace(row=1, about="", panels=[[Panel(caption) for caption in captions]])
    page = to_html(Report("demo", "image-classification", {"train": 1}, []), [example])
    assert [line.split("<")[0] for line in page.split("<figcaption>")[1:]] == expected
