"""Names and phrases are counted, so that they do not come back (docs/style is in CONTRIBUTING.md)."""

from __future__ import annotations

import ast

from tests import words


def test_names_say_what_things_are() -> None:
    total, particles = 0, []
    for path in words.sources("launch", "sft_dist"):
        for name, line in words.bindings(ast.parse(path.read_text())):
            total += 1
            if words.is_particle(name):
                particles.append(f"{path.relative_to(words.ROOT)}:{line}: {name}")
    assert len(particles) <= words.MAX_SHARE * total, "\n".join(particles)


def test_names_are_no_private_dialect() -> None:
    dialect = [
        f"{path.relative_to(words.ROOT)}:{line}: {name}"
        for path in words.sources("launch", "sft_dist")
        for name, line in words.bindings(ast.parse(path.read_text()))
        if words.is_dialect(name)
    ]
    assert not dialect, "\n".join(dialect)


def test_prose_uses_the_words_of_the_field() -> None:
    phrases = [
        f"{path.relative_to(words.ROOT)}:{line}: {phrase!r}; say: {better}"
        for path in words.prose()
        for line, phrase, better in words.phrases(path)
    ]
    assert not phrases, "\n".join(phrases)
