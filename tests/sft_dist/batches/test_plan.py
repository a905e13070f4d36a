"""The batch plan: every example once an epoch, the same on any topology, balanced in tokens, asked for by step."""

import numpy as np
import pytest
from datasets import Dataset

from sft_dist.batches.chunks import Block, OneBlock
from sft_dist.batches.loader import MicroBatches
from sft_dist.batches.plan import (
    BatchPlan,
    balanced_shares,
    epoch_batches,
    example_rng,
    slot_seed,
    slots_of,
    times_before,
)
from sft_dist.data.rows import ROW, Examples
from sft_dist.recipe.arithmetic import Batch

LENGTHS = np.random.default_rng(0).integers(3, 200, size=1003)
CLASSES = np.array([0] * 900 + [1] * 100 + [2] * 3)


@pytest.mark.parametrize("batching", ["plain", "bucketed"])
def test_an_epoch_holds_every_example_once(batching):
    batches = epoch_batches(LENGTHS, seed=3, epoch=2, global_batch=32, batching=batching)
    assert sorted(np.concatenate(batches)) == list(range(1003))
    assert sorted(map(len, batches)) == [1003 % 32] + [32] * 31


@pytest.mark.parametrize("batching", ["plain", "bucketed"])
def test_step_k_is_a_pure_function_whatever_was_asked_before(batching):
    walked, jumped = (BatchPlan(LENGTHS, 7, 32, batching) for _ in range(2))
    steps = {step: walked.at(step) for step in range(1, 100)}
    for step in (77, 3, 40, 99, 1):
        assert np.array_equal(jumped.at(step), steps[step])


def test_epochs_and_seeds_give_other_orders():
    first = np.concatenate(epoch_batches(LENGTHS, 1, 0, 32, "plain"))
    assert not np.array_equal(first, np.concatenate(epoch_batches(LENGTHS, 1, 1, 32, "plain")))
    assert not np.array_equal(first, np.concatenate(epoch_batches(LENGTHS, 2, 0, 32, "plain")))


def padding_share(batches):
    padded = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    return 1 - LENGTHS.sum() / padded


def test_bucketing_saves_most_of_the_padding():
    plain = padding_share(epoch_batches(LENGTHS, 0, 0, 32, "plain"))
    bucketed = padding_share(epoch_batches(LENGTHS, 0, 0, 32, "bucketed"))
    assert plain > 0.4
    assert bucketed < 0.1


def test_bucketed_batches_do_not_come_in_order_of_length():
    means = [LENGTHS[batch].mean() for batch in epoch_batches(LENGTHS, 0, 0, 32, "bucketed")]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


@pytest.mark.parametrize("num_slots", [1, 2, 3, 4, 8])
def test_slots_share_examples_equally_and_tokens_nearly(num_slots):
    batch = epoch_batches(LENGTHS, 0, 0, 48, "plain")[0]
    slots = slots_of(batch, LENGTHS, num_slots)
    assert sorted(np.concatenate(slots)) == sorted(batch)
    assert {len(slot) for slot in slots} == {48 // num_slots}
    tokens = [LENGTHS[slot].sum() for slot in slots]
    assert max(tokens) - min(tokens) <= LENGTHS[batch].max()


def test_a_short_last_batch_may_leave_slots_empty_but_loses_no_example():
    slots = slots_of(np.array([5, 9, 11]), LENGTHS, 8)
    assert sorted(np.concatenate(slots)) == [5, 9, 11]
    assert [len(slot) for slot in slots] == [1, 1, 1, 0, 0, 0, 0, 0]


def test_slot_seeds_differ_by_seed_step_and_slot():
    seeds = {slot_seed(seed, step, slot) for seed in range(5) for step in range(50) for slot in range(8)}
    assert len(seeds) == 5 * 50 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


# ── balanced sampling ───────────────────────────────────────────────────────────────────────────────────────────────
class Noting:
    """A task whose inputs are which example it is, and the first number its augmentation draws."""

    def collate(self, rows, processor, rngs):
        return {"seen": [(row[ROW], float(rng.random())) for row, rng in zip(rows, rngs, strict=True)]}, None


def drawn(num_slots: int = 1, epochs: int = 1, shares: np.ndarray | None = None, seed: int = 5) -> list[list[tuple[int, float]]]:  # fmt: skip
    """Of each step the examples and their first random number, whatever slot they are in."""
    table = Dataset.from_dict({ROW: list(range(1003)), "length": LENGTHS.tolist()})
    plan = BatchPlan(LENGTHS, seed, 32, "bucketed", shares)
    source = OneBlock(Block(Examples(table, "train"), plan))
    batch = Batch(32, num_slots, 32 // num_slots, 1)
    ranks = [MicroBatches(source, batch, rank, Noting(), None) for rank in range(num_slots)]
    steps = range(1, epochs * plan.steps_per_epoch + 1)
    made = [[rank.at(step, 0) for rank in ranks] for step in steps]
    return [sorted(pair for one in micro if len(one.indices) for pair in one.inputs["seen"]) for micro in made]


def test_balanced_sampling_meets_every_class_equally_often():
    pairs = [pair for step in drawn(epochs=3, shares=balanced_shares(CLASSES)) for pair in step]
    assert len(pairs) == 3 * 1003
    shares = np.bincount(CLASSES[[example for example, _ in pairs]]) / len(pairs)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)


def test_every_draw_of_an_example_is_augmented_in_its_own_way():
    """Three examples are drawn a hundred times each in an epoch, several times in a step; they all looked the same."""
    pairs = [pair for step in drawn(epochs=2, shares=balanced_shares(CLASSES)) for pair in step]
    assert sum(example >= 1000 for example, _ in pairs) > 500
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("num_slots", [2, 8])
def test_balanced_draws_are_the_same_on_any_number_of_slots(num_slots):
    shares = balanced_shares(CLASSES)
    assert drawn(num_slots, shares=shares) == drawn(1, shares=shares)


def test_balanced_draws_follow_the_seed():
    shares = balanced_shares(CLASSES)
    assert drawn(shares=shares) == drawn(shares=shares)
    assert drawn(shares=shares) != drawn(shares=shares, seed=6)


def test_plain_sampling_augments_as_it_always_did():
    """Curves of runs without balanced sampling must not change: the first draw has the numbers of (seed, epoch, example)."""
    pairs = [pair for step in drawn(2) for pair in step]
    assert sorted(pairs) == [(i, float(np.random.default_rng([5, 0, i]).random())) for i in range(1003)]
    assert example_rng(5, 0, 7, 0).random() == np.random.default_rng([5, 0, 7]).random()


def test_draws_are_counted_over_an_epoch():
    batches = [np.array([4, 1, 4]), np.array([1, 4, 0]), np.array([4])]
    assert [before.tolist() for before in times_before(batches)] == [[0, 0, 1], [1, 2, 0], [3]]
