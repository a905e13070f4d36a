"""Dividing rows into train, validation and test. A pure function of the rows' number, the seed and the classes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json, write_text


def hold_out(
    num_rows: int,
    shares: dict[str, float],  # validation and test -> share of all rows
    seed: int,
    strata: Sequence[Hashable] | None,  # class of each row, to keep class shares equal
    groups: Sequence[Hashable] | None = None,  # of each row, to keep the rows of a group together
) -> dict[str, np.ndarray]:
    """Row numbers by split, each sorted. Raises UserError when a split would be empty or a class cannot be divided."""
    if groups is not None:
        return _hold_out_groups(shares, seed, groups)
    from sklearn.model_selection import train_test_split

    remaining = np.arange(num_rows)
    parts: dict[str, np.ndarray] = {}
    for split, share in shares.items():
        if share == 0:
            continue
        size = round(share * num_rows)
        if size == 0 or size >= len(remaining):
            raise UserError(Problem(f"{share:g} of {num_rows} rows leaves a split empty", path=f"data.split.{split}"))
        classes = [strata[int(i)] for i in remaining] if strata is not None else None
        if classes is not None:
            counts = Counter(classes)
            num_classes = len(counts)
            if min(counts.values()) >= 2 and num_classes > min(size, len(remaining) - size):
                rows = f"{size} row{'' if size == 1 else 's'}"
                message = f"{num_classes} classes do not fit into the {rows} of {split}: each needs a row there"
                hint = "hold out a larger share, add rows, or set data.split.stratify=false"
                raise UserError(Problem(message, path=f"data.split.{split}", value=f"{share:g}", hint=hint))
            if min(counts.values()) < 2:
                raise _too_small([name for name, count in counts.items() if count < 2], strata or ())
        remaining, held_out = train_test_split(remaining, test_size=size, random_state=seed, stratify=classes)
        parts[split] = np.sort(held_out)
    return {"train": np.sort(remaining), **parts}


def _too_small(classes: Sequence[Hashable], strata: Sequence[Hashable]) -> UserError:
    """The error of classes that leave a split without a row of theirs, with the rows they had before anything was held out."""
    sizes = Counter(strata)
    listed = ", ".join(f"{name!r} ({sizes[name]})" for name in sorted(classes, key=str)[:10])
    remainder = f" and {len(classes) - 10:,} more" if len(classes) > 10 else ""
    message = f"classes with too few rows to be divided with equal shares: {listed}{remainder}"
    hint = "add rows of them, drop them with data.where, or set data.split.stratify=false"
    return UserError(Problem(message, path="data.split.stratify", hint=hint))


def _hold_out_groups(shares: dict[str, float], seed: int, groups: Sequence[Hashable]) -> dict[str, np.ndarray]:
    """Whole groups, the largest first and else in random order: each to the split that lacks most of its share among those
    that it fits into; training takes what fits nowhere else. A split that no group fits into gets the smallest."""
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    names = sorted(members, key=str)
    sizes = {split: round(share * len(groups)) for split, share in shares.items() if share > 0}
    sizes = {"train": len(groups) - sum(sizes.values()), **sizes}
    groups_by_split: dict[str, list[list[int]]] = {split: [] for split in sizes}
    num_rows = Counter[str]()
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    for rows in sorted((members[name] for name in order), key=len, reverse=True):
        fits = [split for split in sizes if split == "train" or num_rows[split] + len(rows) <= sizes[split]]
        split = min(fits, key=lambda split: num_rows[split] / max(sizes[split], 1))
        groups_by_split[split].append(rows)
        num_rows[split] += len(rows)
    for parts in groups_by_split.values():
        if not parts and len(groups_by_split["train"]) > 1:
            parts.append(groups_by_split["train"].pop())
    if empty := [split for split in sizes if not groups_by_split[split]]:
        message = f"{len(names)} groups are too few: {empty[0]} would be empty"
        raise UserError(Problem(message, path="data.split.group", value=str(len(names))))
    return {split: np.sort(np.concatenate(parts)) for split, parts in groups_by_split.items()}


def keep_splits(file: Path, ids: dict[str, np.ndarray], contents: dict[str, str]) -> None:
    """Records which rows a run has: split -> row numbers in the source, and a digest of what they hold. Raises UserError when
    they are not those it began with."""
    if check_splits(file, ids, contents):
        return
    current = _described(ids, contents)
    # The training rows are the others; they can be many.
    listed = {split: {**current[split], "ids": ids[split].tolist()} for split in ids if split != "train"}
    write_text(file, json.dumps({**current, **listed}) + "\n")


def _described(ids: dict[str, np.ndarray], contents: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {
        split: {
            "rows": len(rows),
            "digest": hashlib.sha256(rows.tobytes()).hexdigest(),
            "contents": contents[split],
        }
        for split, rows in ids.items()
    }


def check_splits(file: Path, ids: dict[str, np.ndarray], contents: dict[str, str]) -> bool:
    """Returns whether splits were recorded. Raises UserError when these are others: a row that was trained on could then be
    tested on. Runs that recorded no contents are compared by the numbers alone."""
    if not file.exists():
        return False
    recorded, current = read_json(file), _described(ids, contents)
    if not isinstance(recorded, dict):
        hint = "restore the file, or start a new run"
        raise UserError(Problem(f"{file} is damaged, so the rows of this run are not known", "data.source", hint=hint))
    for split in {**recorded, **current}:
        was, present = recorded.get(split, {}), current.get(split, {})
        same_content = "contents" not in was or was["contents"] == present.get("contents")
        if was.get("digest") != present.get("digest") or not same_content:
            rows = f"it had {was.get('rows', 0)} rows, and has {present.get('rows', 0)}"
            changed = rows if same_content else f"{rows}; they hold something else, or are in another order"
            message = f"the {split} split is not the one this run began with: {changed}"
            hint = "restore the original data, or start a new run"
            raise UserError(Problem(message, path="data.source", hint=hint))
    return True


def draw(num_rows: int, limit: int | None, seed: int) -> np.ndarray:
    """At most `limit` row numbers, drawn without replacement, sorted."""
    if limit is None or limit >= num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng([seed, num_rows]).permutation(num_rows)[:limit])
