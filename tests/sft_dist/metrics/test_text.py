"""Scores of tags and texts against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from sft_dist.metrics.text import (
    answer_scores,
    bleu_tokenizer,
    entities_of,
    entity_scores,
    repeated_ngrams,
    repeated_sentences,
    summary_scores,
    translation_scores,
)


def test_an_entity_counts_when_its_type_and_both_ends_are_right():
    targets = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    predictions = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "I-LOC"]]
    scores = entity_scores(targets, predictions)
    # True: PER, LOC, LOC. Said: PER (right), PER (wrong type), LOC (wrong begin).
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["recall"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx(1 / 3)
    assert scores["accuracy"] == pytest.approx(3 / 6)
    assert scores["per_type"]["PER"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert scores["per_type"]["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}


def test_scores_without_any_entity_are_undefined_and_not_nought():
    assert entity_scores([["O", "O"]], [["O", "O"]]) == {
        "f1": None, "precision": None, "recall": None, "accuracy": 1.0, "per_type": {},
    }  # fmt: skip
    only_said = entity_scores([["O", "O"]], [["B-PER", "O"]])
    assert (only_said["f1"], only_said["per_type"]["PER"]["support"]) == (None, 0)
    assert entity_scores([["B-PER"]], [["O"]])["f1"] == 0.0


def test_entities_may_have_marked_ends_and_be_single_words():
    """IOBES: types that only ever occur as S- or E- count as well."""
    targets = [["S-LOC", "O", "B-PER", "E-PER"], ["B-ORG", "I-ORG", "E-ORG"]]
    predictions = [["S-LOC", "O", "B-PER", "E-PER"], ["O", "O", "E-MISC"]]
    scores = entity_scores(targets, predictions)
    assert (scores["precision"], scores["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert {name: one["support"] for name, one in scores["per_type"].items()} == {
        "LOC": 1,
        "MISC": 0,
        "ORG": 1,
        "PER": 1,
    }
    assert scores["per_type"]["LOC"]["f1"] == 1.0


def test_entities_are_told_with_their_words():
    words, tags = ["Ada", "Lovelace", "lived", "in", "London", "."], ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]
    assert entities_of(words, tags) == [
        {"type": "PER", "text": "Ada Lovelace", "start": 0, "end": 2},
        {"type": "LOC", "text": "London", "start": 4, "end": 5},
    ]


def test_bleu_is_that_of_the_paper():
    reference, text = "the cat is on the mat today", "the cat is on a mat today"
    # n-gram precisions 6/7, 4/6, 2/5, 1/4; equal lengths, so no brevity penalty.
    by_hand = 100 * math.exp(sum(map(math.log, (6 / 7, 4 / 6, 2 / 5, 1 / 4))) / 4)
    assert translation_scores([reference], [text])["bleu"] == pytest.approx(by_hand)
    perfect = translation_scores([reference], [reference])
    assert perfect == {"bleu": pytest.approx(100), "chrf": pytest.approx(100)}


def test_chinese_is_scored_by_character():
    assert [bleu_tokenizer(code, []) for code in ("zh_CN", "zho_Hans", "ja", "de", None)] == [
        "zh",
        "zh",
        "char",
        "13a",
        "13a",
    ]
    assert bleu_tokenizer(None, ["我喜欢学习语言"]) == "zh"
    assert translation_scores(["我喜欢学习语言"], ["我喜欢学习语文"])["bleu"] > 50


def test_rouge_is_that_of_rouge_score_and_knows_other_letters():
    from rouge_score.rouge_scorer import RougeScorer

    reference, text = "The quick brown-fox, it jumped!", "the quick fox jumped over"
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, text)
    assert summary_scores([reference], [text]) == {
        kind: pytest.approx(100 * theirs[kind].fmeasure) for kind in ("rougeL", "rouge1", "rouge2")
    }
    assert summary_scores(["η γάτα κοιμάται", "猫在睡觉"], ["η γάτα κοιμάται", "猫在睡觉"])["rougeL"] == 100
    assert summary_scores(["猫在睡觉"], ["狗在睡觉"])["rouge1"] == 75


def test_answers_are_scored_beside_the_references_and_for_their_health():
    references = ["Paris is the capital.", "eight legs"]
    loop = "no no no no no no"  # 3 4-grams, of which 2 repeat the first
    scores = answer_scores(references, [" Paris is the capital.\n", loop], num_endless=1)
    assert scores["generated_exact_match"] == 0.5
    assert scores["length_ratio"] == (23 + 17) / (21 + 10)
    assert scores["repeated_ngrams"] == pytest.approx((0 + 2 / 3) / 2)
    assert scores["repeated_sentences"] == 0
    assert scores["no_end_token"] == 0.5
    assert scores["rougeL"] == pytest.approx((100 + 0) / 2)
    assert set(answer_scores([], [], 0)) == set(scores)
    assert set(answer_scores([], [], 0).values()) == {None}


def test_repetitions_are_shares_of_what_an_answer_says():
    assert repeated_ngrams("a b c d") == repeated_ngrams("a") == repeated_ngrams("") == 0
    assert repeated_ngrams("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_sentences("Yes. Yes. No!\nYes.") == pytest.approx(2 / 4)
    assert repeated_sentences("はい。はい。") == pytest.approx(1 / 2)
