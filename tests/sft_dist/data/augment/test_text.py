"""Words of a text change at random, and only as the settings say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sft_dist.data.augment import text as augment
from sft_dist.recipe.augment import TextAugment
from sft_dist.recipe.errors import UserError

TEXT = "the film was great and the actors were simply splendid in every single scene"


def changed(seed: int = 0, text: str = TEXT, **settings) -> str:
    return augment.augment_text(text, TextAugment(**{"probability": 1.0, **settings}), np.random.default_rng(seed))


def test_the_same_generator_gives_the_same_text_and_another_one_another():
    settings = {"delete": 0.2, "swap": 0.2}
    assert changed(3, **settings) == changed(3, **settings)
    assert len({changed(seed, **settings) for seed in range(20)}) > 15


def test_a_share_of_the_words_is_left_out():
    texts = [changed(seed, delete=0.25).split() for seed in range(400)]
    assert np.mean([len(words) for words in texts]) == pytest.approx(0.75 * 14, abs=0.3)
    assert all(not Counter(words) - Counter(TEXT.split()) for words in texts)


@pytest.mark.parametrize("text", ["word", "one two", " ", ""])
def test_a_text_never_loses_all_its_words(text):
    for seed in range(50):
        found = changed(seed, text, delete=1.0, swap=1.0)
        assert bool(found.split()) == bool(text.split())


def test_swapped_words_are_the_same_words():
    found = changed(1, swap=0.1)
    assert found != TEXT
    assert Counter(found.split()) == Counter(TEXT.split())
    moved = sum(a != b for a, b in zip(found.split(), TEXT.split(), strict=True))
    assert moved == 2  # one swap for 14 words at a tenth


def test_only_the_chosen_share_of_texts_changes():
    found = [changed(seed, delete=0.5, probability=0.3) != TEXT for seed in range(1000)]
    assert np.mean(found) == pytest.approx(0.3, abs=0.05)


def test_white_space_of_an_unchanged_text_stays():
    assert changed(0, "two  lines\n here", probability=0.0, delete=0.9) == "two  lines\n here"


# ── synonyms ────────────────────────────────────────────────────────────────────────────────────────────────────────
pytestmark = pytest.mark.filterwarnings("ignore:The multilingual functions")


@pytest.fixture
def tiny_wordnet(tmp_path, monkeypatch):
    """A WordNet of two adjectives' meanings, in the files that Princeton's has (wndb(5WN))."""
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    lines, places = "", {}
    for words in (["great", "outstanding"], ["great", "first_rate"], ["splendid", "magnificent"]):
        for word in words:
            places.setdefault(word, []).append(len(lines))
        entry = " ".join(f"{word} 0" for word in words)
        lines += f"{len(lines):08d} 00 a {len(words):02x} {entry} 000 | a meaning  \n"
    (folder / "data.adj").write_text(lines)
    index = "".join(
        f"{word} a {len(at)} 0 {len(at)} 0 {' '.join(f'{one:08d}' for one in at)}  \n" for word, at in places.items()
    )
    (folder / "index.adj").write_text(index)
    for kind in ("noun", "verb", "adv"):
        (folder / f"data.{kind}").write_text("")
        (folder / f"index.{kind}").write_text("")
    for kind in ("noun", "verb", "adj", "adv"):
        (folder / f"{kind}.exc").write_text("")
    (folder / "lexnames").write_text("00\tadj.all\t3\n")
    (folder / "index.sense").write_text("")
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    augment.wordnet.cache_clear()
    yield
    augment.wordnet.cache_clear()


def test_words_become_synonyms_of_any_meaning(tiny_wordnet):
    assert augment.synonyms("great") == ["first rate", "outstanding"]
    found = {changed(seed, "a Great, big film", synonyms=0.25) for seed in range(20)}
    assert found == {"a First rate, big film", "a Outstanding, big film"}


def test_words_without_synonyms_stay(tiny_wordnet):
    assert changed(0, "the film was dull", synonyms=0.5) == "the film was dull"


def test_absent_wordnet_is_said_before_training(tmp_path, monkeypatch):
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    augment.wordnet.cache_clear()
    with pytest.raises(UserError, match=r"data\.augment\.text\.synonyms.*is not installed"):
        augment.check_text_augment(TextAugment(synonyms=0.1))
    augment.check_text_augment(TextAugment(delete=0.1))


# ── back-translation ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def installed_package(tmp_path, monkeypatch):
    """As pip would leave it, with an entry point."""
    (tmp_path / "loud_package.py").write_text(
        "def louder(text):\n    return text.upper()\n\ndef empty(text):\n    return ''\n\ndef number(text):\n    return 1\n"
    )
    about = tmp_path / "loud_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: loud-package\nVersion: 1.0\n")
    points = [f"{name} = loud_package:{name}" for name in ("louder", "empty", "number", "absent")]
    (about / "entry_points.txt").write_text(f"[{augment.PARAPHRASES}]\n" + "\n".join(points) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    augment.paraphrase_of.cache_clear()


def test_a_package_can_offer_paraphrases(installed_package):
    assert changed(0, "a film", back_translation="loud_package:louder") == "A FILM"
    assert changed(0, "a film", back_translation="loud_package:empty") == "a film"


@pytest.mark.parametrize("name", ["subprocess:getoutput", "os:system", "loud_package:__name__"])
def test_a_function_that_nobody_offers_is_never_called(installed_package, name):
    with pytest.raises(UserError, match="no installed package provides") as found:
        changed(0, "touch /tmp/never", back_translation=name)
    assert "loud_package:louder" in found.value.problems[0].valid


def test_what_a_package_offers_wrongly_is_named(installed_package):
    with pytest.raises(UserError, match="cannot be imported"):
        augment.check_text_augment(TextAugment(back_translation="loud_package:absent"))
    with pytest.raises(UserError, match="gave int"):
        changed(0, "a film", back_translation="loud_package:number")
