"""A task that fails on one example: which one is found, whatever the task does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from sft_dist.data.encode import collate, encode, smallest_failing
from sft_dist.data.rows import ROW, Examples
from sft_dist.recipe.errors import UserError
from sft_dist.run.failures import DataError


class Task:
    """Cannot use the rows in `bad`; counts the calls."""

    def __init__(self, *bad: int, error: Exception | None = None) -> None:
        self.bad, self.error, self.calls = set(bad), error or ValueError("no such picture"), 0

    def encode(self, rows, tokenizer):
        self.check(rows[ROW])
        return {"length": [1] * len(rows[ROW])}

    def collate(self, rows, tokenizer, rngs):
        self.check([row[ROW] for row in rows])
        return {"input_ids": torch.ones(len(rows), 1)}, torch.zeros(len(rows))

    def check(self, ids):
        self.calls += 1
        if self.bad & set(ids):
            raise self.error


def rows(count: int) -> dict[str, list[int]]:
    return {ROW: [10 * number for number in range(count)]}


def examples(count: int) -> Examples:
    return Examples(Dataset.from_dict({**rows(count), "length": [1] * count}), "train")


def test_a_row_that_cannot_be_encoded_is_named_with_its_split():
    with pytest.raises(DataError, match="^row 70 of the validation split: ValueError: no such picture$"):
        encode(Task(70), rows(9), None, "validation")


def test_an_example_that_cannot_be_collated_is_named():
    with pytest.raises(DataError, match="^row 40 of the train split: ValueError") as caught:
        collate(Task(40), examples(9), np.array([8, 4, 2]), None)
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_example_that_is_drawn_twice_has_two_generators():
    class Keeping(Task):
        def collate(self, rows, tokenizer, rngs):
            return {"numbers": [rng.random() for rng in rngs]}, None

    given = [np.random.default_rng(seed) for seed in range(3)]
    found, _ = collate(Keeping(), examples(9), np.array([4, 2, 4]), None, given)
    assert found["numbers"] == [np.random.default_rng(seed).random() for seed in range(3)]


@pytest.mark.slow
def test_one_of_a_million_is_found_in_few_calls():
    task = Task(7_654_320)
    with pytest.raises(DataError, match="^row 7654320 "):
        encode(task, rows(1_000_000), None, "train")
    assert task.calls <= 41


def test_the_first_of_several_is_named():
    with pytest.raises(DataError, match="^row 30 "):
        encode(Task(30, 80), rows(9), None, "train")


def test_examples_that_fail_only_together_are_all_named():
    def together(indices: np.ndarray) -> None:
        if {2, 5} <= set(indices.tolist()):
            raise ValueError("shapes differ")

    assert smallest_failing(together, np.array([5, 1, 7, 2])).tolist() == [5, 1, 7, 2]


def test_good_examples_cost_one_call():
    task = Task()
    assert encode(task, rows(9), None, "train")["length"] == [1] * 9
    assert task.calls == 1


@pytest.mark.parametrize("error", [UserError("a class that does not occur"), MemoryError()])
def test_what_is_not_the_examples_fault_is_not_blamed_on_one(error):
    with pytest.raises(type(error)):
        encode(Task(0, error=error), rows(2), None, "train")
