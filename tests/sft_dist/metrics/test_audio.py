"""Error rates of transcripts against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sft_dist.metrics.audio import transcript_scores, unweighted_average_recall


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
