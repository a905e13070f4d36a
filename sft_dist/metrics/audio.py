"""Scores of the audio tasks: errors in words and characters by jiwer, recall of each class weighed alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sft_dist.metrics.transcripts import comparable


def transcript_scores(predicted: Sequence[str], spoken: Sequence[str]) -> dict[str, float | None]:
    """Word and character error rate over all texts: edits / words (characters) that were said. Above 1 when more is wrong
    than was said; None when nothing was said."""
    import jiwer

    pairs = [(comparable(said), comparable(found)) for said, found in zip(spoken, predicted, strict=True)]
    # An utterance of punctuation alone has no words to divide by; what is found in it counts all the same.
    words = sum(len(said.split()) for said, _ in pairs)
    if not words:
        return {"wer": None, "cer": None}
    extra = [found for said, found in pairs if not said]
    full = [(said, found) for said, found in pairs if said]
    said, found = [said for said, _ in full], [found for _, found in full]
    by_word, by_character = jiwer.process_words(said, found), jiwer.process_characters(said, found)
    characters = sum(len(text) for text in said)
    return {
        "wer": (_edits(by_word) + sum(len(text.split()) for text in extra)) / words,
        "cer": (_edits(by_character) + sum(len(text) for text in extra)) / characters,
    }


def unweighted_average_recall(
    predicted: np.ndarray,  # (examples,) class numbers
    targets: np.ndarray,  # (examples,) class numbers
) -> float:
    """UAR, the mean recall over the classes that occur (Schuller et al. 2009, the INTERSPEECH emotion challenge)."""
    from sklearn.metrics import recall_score

    return float(recall_score(targets, predicted, labels=np.unique(targets), average="macro", zero_division=0.0))


def _edits(found: object) -> int:
    return found.substitutions + found.deletions + found.insertions  # type: ignore[attr-defined]
