"""Counts names and phrases that a reader of this field would stumble over. `python tests/words.py [PATH...]` lists them.

A name says what a thing is, by the noun the field uses for it: never what happened to it, and never a pronoun.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Pronouns, participles and adverbs that name nothing.
PARTICLES = frozenset(
    [
        "again",
        "anew",
        "another",
        "any",
        "asked",
        "aside",
        "away",
        "both",
        "chosen",
        "drawn",
        "each",
        "else",
        "few",
        "found",
        "given",
        "gone",
        "here",
        "how",
        "it",
        "its",
        "itself",
        "kept",
        "known",
        "lacking",
        "least",
        "left",
        "less",
        "made",
        "many",
        "meant",
        "more",
        "most",
        "much",
        "near",
        "none",
        "now",
        "odd",
        "one",
        "ones",
        "other",
        "others",
        "part",
        "place",
        "places",
        "rest",
        "said",
        "same",
        "seen",
        "shown",
        "some",
        "such",
        "taken",
        "that",
        "them",
        "then",
        "there",
        "these",
        "they",
        "thing",
        "things",
        "this",
        "those",
        "told",
        "wanted",
        "what",
        "where",
        "which",
        "who",
        "whole",
        "whose",
        "why",
        "wrong",
    ]
)
# Words of a private dialect, in any part of a name. The field says: micro-batch or state key, evaluate, check, heartbeat,
# run folder, run state, requeue policy.
DIALECT = frozenset(
    [
        "barren",
        "beat",
        "beats",
        "capsule",
        "capsules",
        "echoes",
        "gate",
        "judge",
        "judged",
        "judges",
        "judging",
        "ledger",
        "looks",
        "seal",
        "slot",
        "slots",
        "verdict",
        "verdicts",
    ]
)
MAX_SHARE = 0.005  # of all bindings that may be particles

PHRASES = {
    r"\bno numbers?\b(?! of)": "NaN or infinite",
    r"\b(?:go|goes|going|went|gone) on\b": "resume, continue",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bwithout a word\b": "silently",
    r"\bfor ever\b": "forever",
    r"\b(?:is|are|be|was|were) told\b": "receives, is given",
    r"\bleft out\b|\bleaves? out\b|\bleaving out\b": "skipped, omitted, excluded",
    r"\bthe gate\b|\bgate's\b": "the data check",
    r"\bjudg(?:e|es|ed|ing)\b": "evaluate",
    r"\b(?:and|or) its kin\b|\band their kin\b": "and similar models",
    r"\bshared out\b": "sharded, distributed",
    r"\bpictures?\b": "image",
    r"\bdata (?:are|were|lie|have)\b": "data is",
    r"\bcapsules?\b": "run folder",
    r"(?<!recipe\.)\bverdicts?\b(?!\.json)": "decision",
    r"\bsign of life\b|\bsigns of life\b": "heartbeat",
    r"\bWhoever\b": "name the actor",
    r"\bhalf-way\b": "partway",
}


def bindings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of everything that a module gives a name to."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, line
        elif isinstance(node, ast.arg):
            yield node.arg, line
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, line
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, line
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, line


def is_particle(name: str) -> bool:
    return name.strip("_").lower() in PARTICLES


def is_dialect(name: str) -> bool:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return any(word.lower() in DIALECT for word in words)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def prose() -> list[Path]:
    """Everything a person reads: pages, recipes, cluster files, sources with their comments and messages."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    data = [path for folder in ("recipes", "slurm") for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    templates = sorted((ROOT / "sft_dist").rglob("*.html")) + sorted((ROOT / "launch").rglob("*.tmpl"))
    return [*pages, *data, *templates, *sources("launch", "sft_dist", "samples", "benchmarks")]


def phrases(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, phrase, better) of each forbidden phrase."""
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        for pattern, better in PHRASES.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                yield number, match[0], better


def main(arguments: list[str]) -> None:
    chosen = [Path(argument).resolve() for argument in arguments] or [ROOT]
    total, particles = 0, Counter[str]()
    for path in sources("launch", "sft_dist"):
        if any(path.is_relative_to(folder) for folder in chosen):
            for name, line in bindings(ast.parse(path.read_text())):
                total += 1
                if is_particle(name) or is_dialect(name):
                    particles[name] += 1
                    print(f"{path.relative_to(ROOT)}:{line}: name `{name}`")
    for path in prose():
        if any(path.is_relative_to(folder) for folder in chosen):
            for line, phrase, better in phrases(path):
                print(f"{path.relative_to(ROOT)}:{line}: `{phrase}`; say: {better}")
    print(f"{sum(particles.values())} of {total} names: {particles.most_common(12)}")


if __name__ == "__main__":
    main(sys.argv[1:])
