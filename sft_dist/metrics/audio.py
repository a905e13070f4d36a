"""Metrics of the audio tasks: word and character error rates by jiwer, and unweighted average recall."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sft_dist.metrics.transcripts import comparable


def transcript_scores(predicted: Sequence[str], spoken: Sequence[str]) -> dict[str, float | None]:
    """Returns word and character error rates over all texts: edits / words (characters) of the references. Above 1 when there
    are more edits than words; None when the references are empty."""
    import jiwer

    pairs = [(comparable(truth), comparable(text)) for truth, text in zip(spoken, predicted, strict=True)]
    # A reference of punctuation alone has no words to divide by; words predicted for it are insertions.
    words = sum(len(truth.split()) for truth, _ in pairs)
    if not words:
        return {"wer": None, "cer": None}
    insertions = [text for truth, text in pairs if not truth]
    scored = [(truth, text) for truth, text in pairs if truth]
    references, texts = [truth for truth, _ in scored], [text for _, text in scored]
    by_word, by_character = jiwer.process_words(references, texts), jiwer.process_characters(references, texts)
    characters = sum(len(truth) for truth in references)
    return {
        "wer": (_edits(by_word) + sum(len(text.split()) for text in insertions)) / words,
        "cer": (_edits(by_character) + sum(len(text) for text in insertions)) / characters,
    }


def unweighted_average_recall(
    predicted: np.ndarray,  # (examples,) class numbers
    targets: np.ndarray,  # (examples,) class numbers
) -> float:
    """UAR, the mean recall over the classes that occur (Schuller et al. 2009, the INTERSPEECH emotion challenge)."""
    from sklearn.metrics import recall_score

    return float(recall_score(targets, predicted, labels=np.unique(targets), average="macro", zero_division=0.0))


def _edits(alignment: object) -> int:
    return alignment.substitutions + alignment.deletions + alignment.insertions  # type: ignore[attr-defined]
