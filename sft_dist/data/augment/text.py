"""Random changes to the words of a text: deleted, swapped, replaced by synonyms (EDA, Wei & Zou 2019, arXiv 1901.11196), or
the whole text in other words (back-translation, Sennrich et al. 2016, arXiv 1511.06709).

Words are what stands between white space, so texts written without any stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from sft_dist.recipe.augment import TextAugment
from sft_dist.recipe.errors import Problem, UserError

# A recipe may only name functions that an installed package offers for this: any function that takes and gives a text
# would do otherwise, and `subprocess:getoutput` is one of them.
PARAPHRASES = "sft_dist.paraphrases"

_WORD = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)  # what stands before, the word, what stands after


def augment_text(text: str, settings: TextAugment, rng: np.random.Generator) -> str:
    """The text, or a changed one; never without words if it had some. Raises UserError as `check_text_augment` does."""
    if rng.random() >= settings.probability:
        return text
    if settings.back_translation:
        text = paraphrase_of(settings.back_translation)(text).strip() or text
    if settings.synonyms:
        text = with_synonyms(text, settings.synonyms, rng)
    if settings.swap:
        text = swapped(text, settings.swap, rng)
    if settings.delete:
        text = shortened(text, settings.delete, rng)
    return text


def check_text_augment(settings: TextAugment) -> None:
    """Everything the settings need is there. Raises UserError."""
    if settings.synonyms:
        wordnet()
    if settings.back_translation:
        paraphrase_of(settings.back_translation)


def shortened(text: str, share: float, rng: np.random.Generator) -> str:
    """Deletes each word with this probability; one always stays."""
    words = text.split()
    remaining = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= share]
    if not words or len(remaining) == len(words):
        return text
    return " ".join(remaining or [words[rng.integers(len(words))]])


def swapped(text: str, share: float, rng: np.random.Generator) -> str:
    """Two words change places, once for every 1 / share words and at least once."""
    words = text.split()
    if len(words) < 2:
        return text
    for _ in range(_number(share, words)):
        i, j = rng.choice(len(words), size=2, replace=False)
        words[i], words[j] = words[j], words[i]
    return " ".join(words)


def with_synonyms(text: str, share: float, rng: np.random.Generator) -> str:
    """This share of the words, at least one, become synonyms; only those WordNet has some for, and no function words."""
    words = text.split()
    num_missing = _number(share, words)
    for i in rng.permutation(len(words)):
        if not num_missing:
            break
        before, word, after = _WORD.fullmatch(words[i]).groups()  # type: ignore[union-attr]
        if candidates := synonyms(word.lower()):
            synonym = candidates[rng.integers(len(candidates))]
            words[i] = before + (synonym.capitalize() if word[:1].isupper() else synonym) + after
            num_missing -= 1
    return " ".join(words) if num_missing < _number(share, words) else text


def synonyms(word: str) -> list[str]:
    """All of WordNet's, of any meaning of the word, in a fixed order."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    if not word.isalpha() or word in ENGLISH_STOP_WORDS:
        return []
    lemmas = {lemma.replace("_", " ") for sense in wordnet().synsets(word) for lemma in sense.lemma_names()}
    return sorted(lemma for lemma in lemmas if lemma.lower() != word)


@cache
def wordnet() -> Any:
    """WordNet as nltk reads it. Raises UserError when it is not on this machine: nothing is downloaded in a job."""
    missing = "WordNet is not installed"
    hint = "where the internet can be reached: pip install nltk && python -m nltk.downloader wordnet"
    try:
        from nltk.corpus import wordnet as corpus

        corpus.ensure_loaded()
    except (ImportError, LookupError):
        raise UserError(Problem(missing, "data.augment.text.synonyms", hint=hint)) from None
    return corpus


@cache
def paraphrase_of(name: str) -> Callable[[str], str]:
    """The function `module:function`, which an installed package has to offer as an entry point of the group
    `sft_dist.paraphrases`. Raises UserError."""
    path = "data.augment.text.back_translation"
    offered = {point.value: point for point in entry_points(group=PARAPHRASES)}
    if name not in offered:
        hint = f'a package provides a function through an entry point: [project.entry-points."{PARAPHRASES}"]'
        raise UserError(
            Problem("no installed package provides this function", path, value=name, valid=tuple(offered), hint=hint)
        )
    try:
        function = offered[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(Problem(f"cannot be imported: {error}", path, value=name)) from error

    def paraphrase(text: str) -> str:
        paraphrased = function(text)
        if not isinstance(paraphrased, str):
            raise UserError(Problem(f"gave {type(paraphrased).__name__} for a text, not a text", path, value=name))
        return paraphrased

    return paraphrase


def _number(share: float, words: list[str]) -> int:
    return max(1, round(share * len(words)))
