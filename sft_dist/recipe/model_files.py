"""What the files of a model folder must be before a library reads them: files, with vocabularies of a size that models have."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import Problem
from sft_dist.recipe.files import irregular

# Adding a token takes time that grows with those added before. Models of speech and images add tens of thousands.
MAX_ADDED_TOKENS = 200_000
MAX_TOKEN_ID = 10_000_000  # embeddings have a row for each id up to the largest
MAX_VOCABULARY_BYTES = 512 * 2**20
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",
    "special_tokens_map.json",
)
_LARGE_NUMBER = re.compile(rb"[:\"]\s*[0-9]{8}")


def folder_problems(folder: Path, path: str = "model.path") -> list[Problem]:
    """Returns why the files in the folder of a model or tokenizer may not be read. `path` is the key path that names it."""
    try:
        files = sorted(folder.iterdir())
    except OSError:  # opening it fails, and says why
        return []
    kinds = {file.name: kind for file in files if (kind := irregular(file))}
    if kinds:
        return [Problem(f"{name} is {kind}, not a file", path, value=str(folder)) for name, kind in kinds.items()]
    reasons = [reason for file in files if file.name in _VOCABULARIES for reason in _vocabulary_faults(file)]
    hint = "check where the tokenizer comes from, and take another copy"
    return [Problem(reason, path, value=str(folder), hint=hint) for reason in reasons]


def _vocabulary_faults(file: Path) -> Iterator[str]:
    if (size := os.path.getsize(file)) > MAX_VOCABULARY_BYTES:
        yield f"{file.name} has {size:,} bytes; a vocabulary has at most {MAX_VOCABULARY_BYTES:,}"
        return
    content = file.read_bytes()
    # Parsing takes a second for large vocabularies, so it waits for a sign of a fault.
    if content.count(b":") <= MAX_ADDED_TOKENS and not _LARGE_NUMBER.search(content):
        return
    try:
        vocabulary = json.loads(content)
    except (ValueError, RecursionError):  # reading it fails, and says why
        return
    if not isinstance(vocabulary, dict):
        return
    added = _added_tokens(file.name, vocabulary)
    if len(added) > MAX_ADDED_TOKENS:
        yield f"{file.name} adds {len(added):,} tokens; at most {MAX_ADDED_TOKENS:,} are read"
    ids = [number for number in (*added, *_trained_ids(file.name, vocabulary)) if isinstance(number, int)]
    if (largest := max(ids, default=0)) > MAX_TOKEN_ID:
        yield f"{file.name} has a token of id {largest:,}; ids are at most {MAX_TOKEN_ID:,}"


def _added_tokens(name: str, vocabulary: dict[str, Any]) -> list[Any]:
    """Returns the ids of added tokens."""
    match name:
        case "tokenizer.json":
            added = vocabulary.get("added_tokens")
            return [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
        case "tokenizer_config.json":
            decoder = vocabulary.get("added_tokens_decoder")
            return [int(number) for number in decoder if number.isdecimal()] if isinstance(decoder, dict) else []
        case "added_tokens.json":
            return list(vocabulary.values())
    return []


def _trained_ids(name: str, vocabulary: dict[str, Any]) -> list[Any]:
    """Returns the ids of the vocabulary itself; that of a tokenizer by scores has none."""
    model = (
        vocabulary.get("model") if name == "tokenizer.json" else {"vocab": vocabulary} if name == "vocab.json" else None
    )
    ids = model.get("vocab") if isinstance(model, dict) else None
    return list(ids.values()) if isinstance(ids, dict) else []
