"""Which texts count as the same transcript."""

from __future__ import annotations

import pytest

from sft_dist.metrics.transcripts import comparable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("  it's  'quoted' ", "it's quoted"),
        ("DON’T stop—now", "don't stop now"),
        ("ﬁne №5", "fine no5"),
        ("20 % of $3.50", "20 of 3 50"),
        ("Ça va? 你好。", "ça va 你好"),
        ("...", ""),
        ("می\u200cروم", "میروم"),  # Persian: "I go", one word
        ("ക്\u200dഷ हिन्\u200dदी", "ക്ഷ हिन्दी"),
        ("\ufeffco\u00adoperate\u200e", "cooperate"),
        ("ភាសា\u200bខ្មែរ", "ភាសា ខ្មែរ"),
    ],
)
def test_comparable_removes_case_and_punctuation_and_nothing_else(text, expected):
    assert comparable(text) == expected
