"""What `data.clean` does to texts: their normal form, and which are nearly the same, found by MinHash (Broder 1997)
without comparing every pair.

Texts are compared by the sets of their five-character shingles, which works for every language and for short texts too.
A hundred minima a text are cut into bands; texts that agree in a whole band are compared exactly, so what is returned is
never a guess of the hashing. In memory stays one number a band and text (at most 400 bytes), not the signatures, not the shingles.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Clean

SHINGLE = 5  # characters
MINIMA = 100  # hash functions of a text
RECALL = 0.999  # at least this share of the pairs at the threshold is found
LONGEST = 20_000  # characters of a text that are looked at
MOST_COMPARED = 50  # texts of one bucket that all others in it are compared with

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_NOT_A_LETTER = re.compile(r"[\W_]+")


def clean_text(value: Any, clean: Clean, role: str = "text", row: int | None = None) -> str:
    """Returns the normal form of a text, a number or a truth value. Raises UserError for anything else."""
    text = plain_text(value, role, row)
    if clean.unicode != "none":
        text = unicodedata.normalize(clean.unicode, text)
    return text.strip() if clean.strip else text


def plain_text(value: Any, role: str, row: int | None) -> str:
    """Returns a text as it is, a number or a truth value as JSON writes it. Raises UserError for anything else."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, Decimal)):
        return str(value)
    if isinstance(value, float):
        return repr(float(value))
    place = "" if row is None else f"row {row}: "
    message = f"{place}a text is needed, not {type_name(value)}"
    hint = "write it as text (lists and objects as JSON text), or name a value inside an object, such as translation.en"
    raise UserError(Problem(message, f"data.columns.{role}", value=repr(value)[:200], hint=hint))


def type_name(value: Any) -> str:
    """Names the type of a value of a source as its author would."""
    names: dict[type, str] = {list: "a list", tuple: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")


def near_duplicates(
    texts: Sequence[str],
    threshold: float = 0.8,  # Jaccard similarity from which two texts are near-duplicates
    step: Callable[[int], None] | None = None,  # told how many texts have been hashed
) -> list[np.ndarray]:
    """Groups of indices, each sorted, the group with the smallest index first. Near-duplicates of near-duplicates are in
    one group. Texts with fewer letters than a shingle are in none."""
    keys = _band_keys(texts, _rows_of_a_band(threshold), step)
    leader = list(range(len(texts)))  # a forest: the way up from a text ends at its group's smallest index

    def group_of(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    cache: dict[int, np.ndarray] = {}

    def shingles_of(index: int) -> np.ndarray:
        if index not in cache:
            if len(cache) > 10_000:
                cache.clear()
            cache[index] = _shingles(texts[index])
        return cache[index]

    apart: set[tuple[int, int]] = set()
    for pair in _candidates(keys):
        first, second = group_of(pair[0]), group_of(pair[1])
        if first == second or pair in apart:
            continue
        if _jaccard(shingles_of(pair[0]), shingles_of(pair[1]), threshold) >= threshold:
            leader[max(first, second)] = min(first, second)
        else:
            apart.add(pair)
    groups: dict[int, list[int]] = {}
    for index in range(len(texts)):
        groups.setdefault(group_of(index), []).append(index)
    return [np.array(members) for members in groups.values() if len(members) > 1]


def _rows_of_a_band(threshold: float) -> int:
    """The longest band that still finds pairs at the threshold: longer ones compare fewer pairs in vain."""
    fitting = [rows for rows in range(1, 11) if 1 - (1 - threshold**rows) ** (MINIMA // rows) >= RECALL]
    return max(fitting, default=1)


def _band_keys(
    texts: Iterable[str], rows: int, step: Callable[[int], None] | None
) -> np.ndarray:  # (texts, bands) uint64
    """Equal in a column means equal in the whole band; 0: no shingle."""
    from datasketch import MinHash

    bands = MINIMA // rows
    empty = MinHash(num_perm=bands * rows, seed=1, hashfunc=int)
    mixers = np.random.default_rng(0).integers(1, 2**63, size=rows, dtype=np.uint64) | np.uint64(1)
    keys: list[np.ndarray] = []
    for number, text in enumerate(texts):
        shingles = _shingles(text)
        if len(shingles):
            minima = empty.copy()
            minima.update_batch((shingles >> np.uint64(32)).tolist())
            values = minima.hashvalues.astype(np.uint64).reshape(bands, rows)
            keys.append((values * mixers).sum(axis=1) | np.uint64(1))
        else:
            keys.append(np.zeros(bands, dtype=np.uint64))
        if step is not None:
            step(number + 1)
    return np.array(keys, dtype=np.uint64).reshape(len(keys), bands)


def _candidates(keys: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs (smaller index first) that share a band; a pair comes as often as it shares one."""
    for column in keys.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1]))
        sizes = np.diff(starts, append=len(ordered))
        for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            if ordered[start] == 0:
                continue
            bucket = order[start : start + size].tolist()
            for position, first in enumerate(bucket[:MOST_COMPARED]):
                for second in bucket[position + 1 :]:
                    yield first, second


def _shingles(text: str) -> np.ndarray:  # (shingles,) uint64, sorted, distinct
    """Hashes of all runs of five characters, after case, punctuation and spacing are made alike."""
    plain = _NOT_A_LETTER.sub(" ", text[:LONGEST].casefold()).strip()
    if len(plain) < SHINGLE:
        return np.array([], dtype=np.uint64)
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(len(codes) - SHINGLE + 1, dtype=np.uint64)
    for offset in range(SHINGLE):
        hashes = (hashes ^ codes[offset : offset + len(hashes)]) * _FACTOR
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


def _jaccard(left_set: np.ndarray, right_set: np.ndarray, needed: float) -> float:
    """Similarity of two sets; 0 at once when their sizes alone rule out `needed`."""
    smaller, larger = sorted((len(left_set), len(right_set)))
    if smaller < needed * larger:
        return 0.0
    shared = len(np.intersect1d(left_set, right_set, assume_unique=True))
    return shared / (smaller + larger - shared)
