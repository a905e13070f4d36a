"""Dividing rows into train, validation and test. A pure function of the rows' number, the seed and the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from sft_dist.recipe.errors import Problem, UserError


def hold_out(
    num_rows: int,
    shares: dict[str, float],  # validation and test -> share of all rows
    seed: int,
    strata: Sequence[Hashable] | None,  # class of each row, to keep class shares equal
) -> dict[str, np.ndarray]:
    """Row numbers by split, each sorted. Raises UserError when a split would be empty or a class cannot be divided."""
    from sklearn.model_selection import train_test_split

    left = np.arange(num_rows)
    parts: dict[str, np.ndarray] = {}
    for split, share in shares.items():
        if share == 0:
            continue
        size = round(share * num_rows)
        if size == 0 or size >= len(left):
            raise UserError(Problem(f"{share:g} of {num_rows} rows leaves a split empty", path=f"data.split.{split}"))
        classes = [strata[int(i)] for i in left] if strata is not None else None
        if classes is not None:
            rarest, count = min(Counter(classes).items(), key=lambda item: item[1])
            if count < 2 or len(set(classes)) > min(size, len(left) - size):
                raise UserError(
                    Problem(
                        f"class {rarest!r} has {count} rows, too few to be divided with equal shares",
                        path="data.split.stratify",
                        hint="set data.split.stratify=false, or drop the class with data.where",
                    )
                )
        left, taken = train_test_split(left, test_size=size, random_state=seed, stratify=classes)
        parts[split] = np.sort(taken)
    return {"train": np.sort(left), **parts}


def draw(num_rows: int, limit: int | None, seed: int) -> np.ndarray:
    """At most `limit` row numbers, drawn without replacement, sorted."""
    if limit is None or limit >= num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng([seed, num_rows]).permutation(num_rows)[:limit])
