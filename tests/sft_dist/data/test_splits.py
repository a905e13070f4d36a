"""How rows are divided, which message names which condition, and what a run keeps of its division."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_dist.data.prepare import Prepared
from sft_dist.data.splits import draw, hold_out, keep_splits
from sft_dist.recipe.errors import UserError
from tests.sft_dist.data.row_files import ROWS, ids_of, prepared, write_jsonl


@pytest.mark.parametrize(
    ("strata", "message"),
    [
        ([f"intent_{number % 77}" for number in range(600)], "77 classes do not fit into the 60 rows of test"),
        (["p"] * 599 + ["rare"], "equal shares: 'rare' \\(1\\)"),
    ],
)
def test_too_few_rows_and_too_small_a_class_are_told_apart(strata, message):
    with pytest.raises(UserError, match=message):
        hold_out(600, {"test": 0.1}, 0, strata)


def test_all_too_small_classes_are_named_with_the_rows_they_had():
    strata = ["p"] * 597 + ["once"] + ["twice"] * 2
    with pytest.raises(UserError, match=r"equal shares: 'once' \(1\)"):
        hold_out(600, {"test": 0.1}, 0, strata)
    with pytest.raises(UserError, match=r"equal shares: 'a' \(1\), 'b' \(1\)"):
        hold_out(12, {"test": 0.5}, 0, ["p"] * 10 + ["b", "a"])
    with pytest.raises(UserError, match=r"equal shares: 'twice' \(2\)"):  # one of the two is held out for test
        hold_out(12, {"test": 0.5, "validation": 0.2}, 0, ["p"] * 10 + ["twice"] * 2)


@pytest.mark.slow
@given(
    num_rows=st.integers(10, 400),
    validation=st.floats(0, 0.45),
    test=st.floats(0, 0.45),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_holding_out_divides_rows_or_says_why_not(num_rows, validation, test, seed):
    try:
        parts = hold_out(num_rows, {"test": test, "validation": validation}, seed, None)
    except UserError as error:
        assert "leaves a split empty" in str(error)
        assert min(round(share * num_rows) for share in (validation, test) if share) == 0
        return
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(num_rows))
    assert set(parts) == {"train"} | {name for name, share in (("test", test), ("validation", validation)) if share}
    for name, share in (("test", test), ("validation", validation)):
        assert len(parts.get(name, ())) == (round(share * num_rows) if share else 0)


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(1, 300), min_size=3, max_size=40),
    validation=st.sampled_from([0.0, 0.05, 0.1, 0.3]),
    test=st.sampled_from([0.05, 0.1, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_groups_stay_whole_the_largest_is_trained_on_and_no_share_is_exceeded(sizes, validation, test, seed):
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    shares = {split: share for split, share in (("test", test), ("validation", validation)) if share}
    try:
        parts = hold_out(len(groups), shares, seed, None, groups)
    except UserError as error:
        assert "groups are too few" in str(error)
        assert len(sizes) < 5 or max(sizes) > 0.3 * sum(sizes)
        return
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(groups)))
    held = {split: {groups[row] for row in rows} for split, rows in parts.items()}
    assert sum(map(len, held.values())) == len(sizes), "a group is in two splits"
    assert max(sizes[group] for group in held["train"]) == max(sizes)
    for split, share in shares.items():
        assert len(parts[split]) <= round(share * len(groups)) or len(held[split]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_of_skewed_groups_the_smallest_are_held_out(seed):
    sizes = [500, 250, 120, *[5] * 40]
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    parts = hold_out(len(groups), {"test": 0.05, "validation": 0.05}, seed, None, groups)
    assert {name: {groups[row] for row in rows} & {0, 1, 2} for name, rows in parts.items()} == {
        "train": {0, 1, 2}, "test": set(), "validation": set()
    }  # fmt: skip
    assert [len(parts[split]) for split in ("test", "validation")] == [50, 50]


@given(num_rows=st.integers(1, 300), limit=st.integers(1, 400), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_draw_is_sorted_without_repeats_and_of_the_size_asked_for(num_rows, limit, seed):
    drawn = draw(num_rows, limit, seed).tolist()
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(limit, num_rows)
    assert set(drawn) <= set(range(num_rows))


def noted(file: Path, found: Prepared) -> None:
    keep_splits(file, {split: rows.ids for split, rows in found.splits.items()}, found.contents)


@pytest.mark.slow
def test_a_run_keeps_its_rows_though_their_numbers_stay_the_same(tmp_path):
    """Shuffled, a source file has as many rows as before, but others of them are tested on."""
    file, kept = tmp_path / "rows.jsonl", tmp_path / "splits.json"
    begun = prepared(write_jsonl(file, ROWS))
    noted(kept, begun)
    noted(kept, prepared(file))
    shuffled = prepared(write_jsonl(file, [*ROWS[6:], *ROWS[:6]]))  # classes alternate: the same numbers are held out
    assert ids_of(shuffled) == ids_of(begun)
    with pytest.raises(UserError, match="the train split is not the one this run began with.*hold something else"):
        noted(kept, shuffled)
    relabelled = [{**row, "label": "pos" if n in (3, 8) else row["label"]} for n, row in enumerate(ROWS)]
    noted(tmp_path / "other.json", named := prepared(write_jsonl(file, ROWS), split={"stratify": False}))
    changed = prepared(write_jsonl(file, relabelled), split={"stratify": False})
    assert ids_of(changed) == ids_of(named)
    with pytest.raises(UserError, match="is not the one this run began with"):
        noted(tmp_path / "other.json", changed)


def test_a_run_that_noted_numbers_alone_goes_on_with_them(tmp_path):
    kept = tmp_path / "splits.json"
    noted(kept, found := prepared(write_jsonl(tmp_path / "rows.jsonl", ROWS)))
    before = json.loads(kept.read_text())
    kept.write_text(
        json.dumps({split: {k: v for k, v in one.items() if k != "contents"} for split, one in before.items()})
    )
    noted(kept, found)
    with pytest.raises(
        UserError, match=r"the train split is not the one this run began with: it had 24 rows, and has 23"
    ):
        noted(kept, prepared(write_jsonl(tmp_path / "fewer.jsonl", ROWS[:-1])))
