"""Metrics of tagged words and of generated texts, by the libraries whose numbers are published: seqeval, sacrebleu, rouge_score."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

# One token a Han character, kana or Hangul syllable, since no spaces stand between those; else runs of letters and digits.
_ROUGE_TOKEN = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿가-힯]|[^\W_぀-ヿ㐀-䶿一-鿿豈-﫿가-힯]+")


def entity_scores(
    targets: Sequence[Sequence[str]],  # a tag for every word: B-PER, I-PER, O (I- without B- opens an entity), or IOBES
    predictions: Sequence[Sequence[str]],  # as many
) -> dict[str, Any]:
    """Precision, recall and F1 of whole entities (type and both ends right; Tjong Kim Sang & De Meulder 2003), micro-averaged,
    accuracy of tags, and by type under `per_type`. Without a true or a predicted entity, what has no divisor is None."""
    from seqeval.metrics import accuracy_score
    from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

    true, predicted = [list(tags) for tags in targets], [list(tags) for tags in predictions]
    scores: dict[str, Any] = {"f1": None, "precision": None, "recall": None, "accuracy": None, "per_type": {}}
    if any(true):
        scores["accuracy"] = float(accuracy_score(true, predicted))
    types = sorted(
        {kind for kind, _, _ in (*get_entities(true), *get_entities(predicted))}
    )  # as seqeval itself orders them
    if not types:
        return scores
    precision, recall, f1, support = precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
    for name, *values, count in zip(types, precision, recall, f1, support, strict=True):
        numbers = dict(zip(("precision", "recall", "f1"), map(float, values), strict=True))
        scores["per_type"][name] = {**numbers, "support": int(count)}
    if sum(support):
        micro = precision_recall_fscore_support(true, predicted, average="micro", zero_division=0)
        scores |= dict(zip(("precision", "recall", "f1"), map(float, micro[:3]), strict=True))
    return scores


def entity_counts(target: Sequence[str], prediction: Sequence[str]) -> tuple[int, int, int]:
    """Returns right, true and predicted entities of one example, from which `entity_scores` micro-averages."""
    from seqeval.metrics.sequence_labeling import get_entities

    true, predicted = set(get_entities(list(target))), set(get_entities(list(prediction)))
    return len(true & predicted), len(true), len(predicted)


def entities_of(words: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the entities that the tags mark: type, text, and word indices (`end` is exclusive)."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [
        {"type": kind, "text": " ".join(words[start : last + 1]), "start": start, "end": last + 1}
        for kind, start, last in get_entities(list(tags))
    ]


def translation_scores(
    references: Sequence[str], texts: Sequence[str], language: str | None = None
) -> dict[str, float]:
    """BLEU (Papineni et al. 2002) and chrF (Popovic 2015) of the corpus, 0 to 100, as sacrebleu has them. `language` of the
    references chooses BLEU's tokenizer: Chinese, Japanese and Korean are not divided by spaces."""
    import sacrebleu

    tokenizer = bleu_tokenizer(language, references)
    # force: no warning for every checkpoint when texts look tokenized.
    return {
        "bleu": float(sacrebleu.corpus_bleu(list(texts), [list(references)], tokenize=tokenizer, force=True).score),
        "chrf": float(sacrebleu.corpus_chrf(list(texts), [list(references)]).score),
    }


def bleu_tokenizer(language: str | None, references: Sequence[str]) -> str:
    """Returns sacrebleu's name of the tokenizer: `13a` (mteval's), `zh`, or `char` where words would need a dictionary."""
    code = re.split(r"[-_]", (language or "").lower())[0]
    if code in ("zh", "zho", "cmn", "yue"):
        return "zh"
    if code in ("ja", "jpn", "ko", "kor", "th", "tha", "lo", "lao", "km", "khm", "my", "mya"):
        return "char"
    if not code and references:
        sample = "".join(references[:200])
        if sum("一" <= letter <= "鿿" for letter in sample) > len(sample) / 3:
            return "zh"
    return "13a"


def summary_scores(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L F-measures (Lin 2004), 0 to 100, averaged over examples. No stemming. Words are as rouge_score
    divides them where they are ASCII; other letters count, too."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rougeL", "rouge1", "rouge2")
    scorer = RougeScorer(list(kinds), tokenizer=_Words())
    scores = [scorer.score(reference, text) for reference, text in zip(references, texts, strict=True)]
    return {kind: 100 * sum(score[kind].fmeasure for score in scores) / max(len(scores), 1) for kind in kinds}


def answer_scores(references: Sequence[str], answers: Sequence[str], num_endless: int) -> dict[str, float | None]:
    """Scores generated answers, and how healthy they are: characters for each of the references, mean share of repeated 4-grams of
    words (Welleck et al. 2020) and of repeated sentences in an answer, share of answers without an end. None without answers.

    `num_endless`: answers that no end token ended.
    """
    if not answers:
        return dict.fromkeys(
            ("rougeL", "bleu", "chrf", "generated_exact_match", "length_ratio", *_REPETITION, "no_end_token")
        )
    pairs = list(zip(references, answers, strict=True))
    reference_chars = sum(map(len, references))
    return {
        "rougeL": summary_scores(references, answers)["rougeL"],
        **translation_scores(references, answers),
        "generated_exact_match": sum(reference.strip() == answer.strip() for reference, answer in pairs) / len(pairs),
        "length_ratio": sum(map(len, answers)) / reference_chars if reference_chars else None,
        **{name: sum(map(share_in, answers)) / len(answers) for name, share_in in _REPETITION.items()},
        "no_end_token": num_endless / len(answers),
    }


def repeated_ngrams(text: str, n: int = 4) -> float:
    """Returns the share of the n-grams of words that occurred before in the text."""
    words = text.split()
    return _repeated([tuple(words[start : start + n]) for start in range(len(words) - n + 1)])


def repeated_sentences(text: str) -> float:
    """Returns the share of the sentences and lines that occurred before in the text."""
    return _repeated([sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()])


def _repeated(items: Sequence[Hashable]) -> float:
    return 1 - len(set(items)) / len(items) if items else 0.0


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_REPETITION = {"repeated_ngrams": repeated_ngrams, "repeated_sentences": repeated_sentences}


class _Words:
    """rouge_score's own tokenizer keeps a-z and 0-9 only, so a Greek text would have no words at all."""

    def tokenize(self, text: str) -> list[str]:
        return _ROUGE_TOKEN.findall(text.lower())
