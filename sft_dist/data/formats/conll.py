"""CoNLL files: a token and its tag a line, a blank line between sentences. Columns `tokens` and `tags`.

`datasets` has a reader too, but it gives a line without a tag an empty one, and its columns have to be counted by hand; here
the first field is the token and the last is the tag, however many stand between them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.exceptions import DatasetGenerationError

from sft_dist import __version__
from sft_dist.data.formats.cache import tables_folder
from sft_dist.data.formats.dialect import opened
from sft_dist.data.formats.faults import decoded, no_rows, unreadable
from sft_dist.recipe.errors import UserError

FEATURES = Features({"tokens": List(Value("string")), "tags": List(Value("string"))})
_METADATA = re.compile(r"#\s*(?:[\w.:-]+\s*=|newdoc\b|newpar\b|(?:begin|end) document\b)")  # before a sentence
_BLANK = " \t\r\n"  # not what `str.strip` takes away: a non-breaking space can be a token


def read_conll(files: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Raises UserError with file and line; when streaming, only once the line is reached."""
    if streaming:
        return IterableDataset.from_generator(sentences, features=FEATURES, gen_kwargs={"files": files})
    if next(sentences(files), None) is None:
        raise no_rows(files)
    states = [(file, os.path.getsize(file), os.stat(file).st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((__version__, states)).encode()).hexdigest()[:32]
    try:
        return Dataset.from_generator(
            sentences, features=FEATURES, gen_kwargs={"files": files}, cache_dir=tables_folder(), fingerprint=key
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def sentences(files: list[str]) -> Iterator[dict[str, Any]]:
    """One row a sentence. Raises UserError with file and line."""
    for file in files:
        tokens: list[str] = []
        tags: list[str] = []
        for number, line in _lines(file):
            if not tokens and _METADATA.match(line):
                continue
            fields = _fields(line)
            if not fields or fields[0] == "-DOCSTART-":
                if tokens:
                    yield {"tokens": tokens, "tags": tags}
                tokens, tags = [], []
                continue
            if len(fields) < 2:
                message = f"{file}, line {number}: expected a token and its tag"
                hint = "blanks or a tab between them, an empty line between sentences"
                raise unreadable(message, line.strip(_BLANK), hint=hint)
            tokens.append(fields[0])
            tags.append(fields[-1])
        if tokens:
            yield {"tokens": tokens, "tags": tags}


def _fields(line: str) -> list[str]:
    """Separated by tabs where there is one, so that a token may hold blanks."""
    line = line.strip(_BLANK)
    if "\t" in line:
        return [field.strip(" ") for field in line.split("\t") if field.strip(" ")]
    return re.split(" +", line) if line else []


def _lines(file: str) -> Iterator[tuple[int, str]]:
    offset = 0
    with opened(file) as content:
        for number, line in enumerate(content, start=1):
            yield number, decoded(file, number, offset, line)
            offset += len(line)
