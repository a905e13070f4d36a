"""Metrics of the audio tasks: word and character error rates by jiwer, and unweighted average recall."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sft_dist.metrics.transcripts import comparable


def transcript_scores(predicted: Sequence[str], spoken: Sequence[str]) -> dict[str, float | None]:
    """Returns word and character error rates over all texts: edits / words (characters) of the references. Above 1 when there
    are more edits than words; None when the references are empty."""
    word_edits, words, character_edits, characters = transcript_edits(predicted, spoken).sum(axis=0).tolist()
    if not words:
        return {"wer": None, "cer": None}
    return {"wer": word_edits / words, "cer": character_edits / characters}


def transcript_edits(predicted: Sequence[str], spoken: Sequence[str]) -> np.ndarray:  # (texts, 4)
    """Edits and length of each reference, in words and in characters. A reference of punctuation alone has no length; what is
    predicted for it is insertions."""
    return np.array(
        [
            (*_edits(truth, text, "words"), *_edits(truth, text, "characters"))
            for truth, text in (
                (comparable(truth), comparable(text)) for truth, text in zip(spoken, predicted, strict=True)
            )
        ],
        dtype=np.int64,
    ).reshape(-1, 4)


def unweighted_average_recall(
    predicted: np.ndarray,  # (examples,) class numbers
    targets: np.ndarray,  # (examples,) class numbers
) -> float:
    """UAR, the mean recall over the classes that occur (Schuller et al. 2009, the INTERSPEECH emotion challenge)."""
    from sklearn.metrics import recall_score

    return float(recall_score(targets, predicted, labels=np.unique(targets), average="macro", zero_division=0.0))


def _edits(truth: str, text: str, unit: str) -> tuple[int, int]:
    """Returns edits and length of the reference."""
    import jiwer

    divided: Callable[[str], Sequence[str]] = str.split if unit == "words" else list
    if not truth:
        return len(divided(text)), 0
    alignment = jiwer.process_words(truth, text) if unit == "words" else jiwer.process_characters(truth, text)
    return alignment.substitutions + alignment.deletions + alignment.insertions, len(divided(truth))
