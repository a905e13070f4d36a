"""Error rates of transcripts against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sft_dist.metrics.audio import comparable, transcript_scores, unweighted_average_recall


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
def test_comparable_takes_away_case_and_punctuation_and_nothing_else(text, expected):
    assert comparable(text) == expected


def test_error_rates_are_edits_over_what_was_said():
    spoken = ["the cat sat", "on the mat now"]
    found = ["The cat sat.", "on mat no"]  # one word lost, one wrong: 2 of 7
    scores = transcript_scores(found, spoken)
    assert scores["wer"] == pytest.approx(2 / 7)
    assert scores["cer"] == pytest.approx((4 + 1) / (len("the cat sat") + len("on the mat now")))


def test_a_persian_word_with_and_without_its_joiner_is_the_same_word():
    assert transcript_scores(["میروم"], ["می\u200cروم"]) == {"wer": 0.0, "cer": 0.0}
    assert transcript_scores(["خانه"], ["می\u200cروم خانه"])["wer"] == 0.5


def test_more_can_be_wrong_than_was_said():
    assert transcript_scores(["a b c d"], ["x"])["wer"] == 4.0


def test_words_found_where_none_were_said_count():
    assert transcript_scores(["oh no", "yes"], ["...", "yes"])["wer"] == 2.0
    assert transcript_scores(["oh"], ["?"]) == {"wer": None, "cer": None}


def test_silence_for_an_answer_is_all_wrong():
    assert transcript_scores(["", ""], ["a b", "c"]) == {"wer": 1.0, "cer": 1.0}


def test_uar_weighs_classes_alike_and_skips_absent_ones():
    targets = np.array([0] * 8 + [1] * 2)
    assert unweighted_average_recall(np.zeros(10, int), targets) == 0.5
    assert unweighted_average_recall(np.array([0] * 8 + [1, 2]), targets) == 0.75
