"""What counts as the same transcript, for every model: case, punctuation, symbols and invisible characters do not matter.

Numbers stay as they are written ("20" is not "twenty") and so do spellings. Whisper's own normaliser for English also rewrites
those, so models that write in another style or language could not be compared with it. Prepared rows and the letters of a CTC
model follow from this module, so it stands apart from the scores.
"""

from __future__ import annotations

import unicodedata

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})
_ZERO_WIDTH_SPACE = "\u200b"  # a format character to Unicode, but between words (Khmer, Thai)


def comparable(text: str) -> str:
    """Returns the text in lower case and NFKC; white space replaces punctuation and symbols (not apostrophes inside words).

    Format characters are removed, most of all the joiners inside Persian and Indic words: they are not heard, writers use them
    as they like, and white space would make two words of one.
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(_APOSTROPHES)
    text = "".join(char for char in text if unicodedata.category(char) != "Cf" or char == _ZERO_WIDTH_SPACE)
    chars = [
        char if (char == "'" and _is_inside_word(text, i)) or unicodedata.category(char)[0] not in "PSC" else " "
        for i, char in enumerate(text)
    ]
    return " ".join("".join(chars).split())


def _is_inside_word(text: str, i: int) -> bool:
    return 0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()
