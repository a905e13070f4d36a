"""What is said in English prompts of the Asterisk telephone exchange, by file name."""

from __future__ import annotations

import string
from collections.abc import Iterator


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


UNITS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen",
    "eighteen nineteen",
)
TENS = {20: "twenty", 30: "thirty", 40: "forty", 50: "fifty", 60: "sixty", 70: "seventy", 80: "eighty", 90: "ninety"}
ORDINALS = _words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth",
    "sixteenth seventeenth eighteenth nineteenth twentieth",
)
DAYS = _words("sunday monday tuesday wednesday thursday friday saturday")
MONTHS = _words("january february march april may june july august september october november december")
SPELLING = _words(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo sierra",
    "tango uniform victor whiskey x-ray yankee zulu",
)
WORDS = (
    "hundred",
    "thousand",
    "million",
    "billion",
    "minus",
    "pound",
    "star",
    "dollars",
    "today",
    "tomorrow",
    "yesterday",
)


def transcripts() -> Iterator[tuple[str, str]]:
    """(name, words) of every prompt whose words are known, lower case and without punctuation."""
    for number, word in [*enumerate(UNITS), *TENS.items()]:
        yield f"digits/{number}", word
    for number, word in enumerate(ORDINALS, start=1):
        yield f"digits/h-{number}", word
    for number, word in TENS.items():
        if number > 20:
            yield f"digits/h-{number}", word[:-1] + "ieth"
    for kind, words in (("day", DAYS), ("mon", MONTHS)):
        for number, word in enumerate(words):
            yield f"digits/{kind}-{number}", word
    for word in WORDS:
        yield f"digits/{word}", word
    for word in ("hundred", "thousand", "million", "billion"):
        yield f"digits/h-{word}", f"{word}th"
    for letter, word in zip(string.ascii_lowercase, SPELLING, strict=True):
        yield f"letters/{letter}", letter
        yield f"phonetic/{letter}_p", word
    yield from SENTENCES.items()


SENTENCES: dict[str, str] = {}
