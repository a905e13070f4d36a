"""Scores of the audio tasks: errors in words and characters by jiwer, recall of each class weighed alike.

What counts as the same text is fixed here, for every model: `comparable` takes away case, punctuation, symbols and
invisible characters, and nothing else. Numbers stay as they are written ("20" is not "twenty") and so do spellings; Whisper's own normaliser for
English, which also rewrites those, would make models incomparable that write in another style or language.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})
_ZERO_WIDTH_SPACE = "\u200b"  # a format character to Unicode, but between words (Khmer, Thai)


def comparable(text: str) -> str:
    """Lower case, NFKC, punctuation and symbols turned into white space (an apostrophe within a word stays).

    Format characters go without a trace, most of all the joiners within Persian and Indic words: nobody hears them, writers
    leave them out as they like, and white space would make two words of one.
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(_APOSTROPHES)
    text = "".join(one for one in text if unicodedata.category(one) != "Cf" or one == _ZERO_WIDTH_SPACE)
    kept = [
        one if (one == "'" and _inside(text, i)) or unicodedata.category(one)[0] not in "PSC" else " "
        for i, one in enumerate(text)
    ]
    return " ".join("".join(kept).split())


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


def _inside(text: str, i: int) -> bool:
    return 0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()
