"""A metric: the share of ratings that are off by at most one."""

from collections.abc import Sequence

from sft_dist.recipe.metrics import Metric


def within_one(predictions: Sequence[int], references: Sequence[int]) -> float | None:
    close = [abs(rating - truth) <= 1 for rating, truth in zip(predictions, references, strict=True)]
    return sum(close) / len(close) if close else None


WITHIN_ONE = Metric(name="within_one", better="max", compute=within_one, tasks=("ordinal-text",))
