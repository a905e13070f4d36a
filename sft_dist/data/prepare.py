"""From a recipe to cleaned, labelled, divided rows. Everything dropped on the way is counted by its reason."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from sft_dist.data.sources import column, load_rows
from sft_dist.data.splits import draw, hold_out
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Clean, Data, Recipe
from sft_dist.tasks.base import Task

DEFAULT_SHARE = 0.1


@dataclass(frozen=True)
class Rows:
    """Cleaned rows of one split."""

    ids: np.ndarray  # (rows,) row number in the source
    fields: dict[str, list[str]]  # role (text, text_pair) -> cleaned values
    targets: list[Any]  # as the task reads them: class name, list of class names, number

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: np.ndarray) -> Rows:
        fields = {role: [values[i] for i in indices] for role, values in self.fields.items()}
        return Rows(self.ids[indices], fields, [self.targets[i] for i in indices])


@dataclass(frozen=True)
class Prepared:
    splits: dict[str, Rows]
    dropped: dict[str, int]  # reason -> rows, over all splits


def prepare(recipe: Recipe, task: Task) -> Prepared:
    """Read, filter, clean, divide. Raises UserError."""
    dropped: Counter[str] = Counter()
    rows = {
        split: _clean(source, split, recipe.data, task, dropped) for split, source in load_rows(recipe.data).items()
    }
    settings = recipe.data.split
    kept = draw(len(rows["train"]), recipe.data.limit, settings.seed)
    if len(kept) < len(rows["train"]):
        dropped["limit"] += len(rows["train"]) - len(kept)
        rows["train"] = rows["train"].select(kept)
    shares = {}
    for split in ("test", "validation"):
        share = getattr(settings, split)
        if split not in rows:
            shares[split] = DEFAULT_SHARE if share is None else share
    strata = task.strata(rows["train"].targets) if settings.stratify else None
    parts = hold_out(len(rows["train"]), shares, settings.seed, strata)
    divided = {split: rows["train"].select(indices) for split, indices in parts.items()}
    return Prepared({**rows, **divided}, dict(dropped))


def _clean(source: Dataset, split: str, data: Data, task: Task, dropped: Counter[str]) -> Rows:
    keep = np.ones(len(source), dtype=bool)
    for name, wanted in data.where.items():
        values = column(source, name, f"where.{name}")
        allowed = wanted if isinstance(wanted, list) else [wanted]
        keep &= np.fromiter((value in allowed for value in values), dtype=bool, count=len(values))
        if not keep.any():
            there = [text for text, _ in Counter(map(repr, values)).most_common(8)]
            raise UserError(
                Problem(f"no row of {split} is left", path=f"data.where.{name}", found=repr(wanted), valid=tuple(there))
            )
    dropped["where"] += int((~keep).sum())

    # The first role of a task is required; the others are read when the recipe maps them to a column.
    roles = [role for role in task.roles if role == task.roles[0] or role in data.columns]
    raw = {role: column(source, data.columns.get(role, role), role) for role in roles}
    labels = column(source, data.columns.get("label", "label"), "label")
    fields: dict[str, list[str]] = {role: [] for role in roles}
    kept: list[int] = []
    targets: list[Any] = []
    seen: set[tuple[str, ...]] = set()
    for number in map(int, np.flatnonzero(keep)):
        cleaned = tuple(clean_text(raw[role][number], data.clean) for role in roles)
        target = task.parse(labels[number], row=number)
        reason = _why_drop(cleaned, target, seen, data.clean)
        if reason:
            if reason in ("no label", "empty text") and not data.clean.drop_empty:
                raise UserError(
                    Problem(f"row {number} of {split}: {reason}", path="data.clean.drop_empty", found="false")
                )
            dropped[reason] += 1
            continue
        seen.add(cleaned)
        kept.append(number)
        targets.append(target)
        for role, value in zip(roles, cleaned, strict=True):
            fields[role].append(value)
    if not kept:
        raise UserError(
            Problem(f"no row of {split} is left after cleaning", path="data.clean", found=str(dict(dropped)))
        )
    return Rows(np.array(kept), fields, targets)


def _why_drop(values: tuple[str, ...], target: Any, seen: set[tuple[str, ...]], clean: Clean) -> str:
    if target is None:
        return "no label"
    if not values[0]:
        return "empty text"
    if clean.max_chars is not None and sum(map(len, values)) > clean.max_chars:
        return "too long"
    return "duplicate" if clean.drop_duplicates and values in seen else ""


def clean_text(value: Any, clean: Clean) -> str:
    text = "" if value is None else str(value)
    if clean.unicode != "none":
        text = unicodedata.normalize(clean.unicode, text)
    return text.strip() if clean.strip else text
