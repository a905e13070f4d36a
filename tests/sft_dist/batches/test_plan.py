"""The batch plan: every example once an epoch, the same on any topology, balanced in tokens, asked for by step."""

import numpy as np
import pytest
from datasets import Dataset

from sft_dist.batches.chunks import Chunk, SingleChunk
from sft_dist.batches.loader import MicroBatches
from sft_dist.batches.plan import (
    BatchPlan,
    balanced_shares,
    count_earlier_draws,
    epoch_batches,
    example_rng,
    micro_batch_seed,
    split_batch,
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


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 4, 8])
def test_micro_batches_share_examples_equally_and_tokens_nearly(num_micro_batches):
    batch = epoch_batches(LENGTHS, 0, 0, 48, "plain")[0]
    micro_batches = split_batch(batch, LENGTHS, num_micro_batches)
    assert sorted(np.concatenate(micro_batches)) == sorted(batch)
    assert {len(micro_batch) for micro_batch in micro_batches} == {48 // num_micro_batches}
    tokens = [LENGTHS[micro_batch].sum() for micro_batch in micro_batches]
    assert max(tokens) - min(tokens) <= LENGTHS[batch].max()


def test_a_short_last_batch_may_leave_micro_batches_empty_but_loses_no_example():
    micro_batches = split_batch(np.array([5, 9, 11]), LENGTHS, 8)
    assert sorted(np.concatenate(micro_batches)) == [5, 9, 11]
    assert [len(micro_batch) for micro_batch in micro_batches] == [1, 1, 1, 0, 0, 0, 0, 0]


def test_micro_batch_seeds_differ_by_seed_step_and_micro_batch():
    seeds = {micro_batch_seed(seed, step, number) for seed in range(5) for step in range(50) for number in range(8)}
    assert len(seeds) == 5 * 50 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


# ── balanced sampling ───────────────────────────────────────────────────────────────────────────────────────────────
class RecordingTask:
    """A task whose inputs are which example it is, and the first number its augmentation draws."""

    def collate(self, rows, processor, rngs):
        return {"seen": [(row[ROW], float(rng.random())) for row, rng in zip(rows, rngs, strict=True)]}, None


def draws(num_micro_batches: int = 1, epochs: int = 1, shares: np.ndarray | None = None, seed: int = 5) -> list[list[tuple[int, float]]]:  # fmt: skip
    """Of each step the examples and their first random number, whatever micro-batch they are in."""
    table = Dataset.from_dict({ROW: list(range(1003)), "length": LENGTHS.tolist()})
    plan = BatchPlan(LENGTHS, seed, 32, "bucketed", shares)
    source = SingleChunk(Chunk(Examples(table, "train"), plan))
    batch = Batch(32, num_micro_batches, 32 // num_micro_batches, 1)
    ranks = [MicroBatches(source, batch, rank, RecordingTask(), None) for rank in range(num_micro_batches)]
    steps = range(1, epochs * plan.steps_per_epoch + 1)
    batches = [[rank.at(step, 0) for rank in ranks] for step in steps]
    return [sorted(pair for batch in step if len(batch.indices) for pair in batch.inputs["seen"]) for step in batches]


def test_balanced_sampling_meets_every_class_equally_often():
    pairs = [pair for step in draws(epochs=3, shares=balanced_shares(CLASSES)) for pair in step]
    assert len(pairs) == 3 * 1003
    shares = np.bincount(CLASSES[[example for example, _ in pairs]]) / len(pairs)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)


def test_every_draw_of_an_example_is_augmented_in_its_own_way():
    """Three examples are drawn a hundred times each in an epoch, several times in a step; they all looked the same."""
    pairs = [pair for step in draws(epochs=2, shares=balanced_shares(CLASSES)) for pair in step]
    assert sum(example >= 1000 for example, _ in pairs) > 500
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("num_micro_batches", [2, 8])
def test_balanced_draws_are_the_same_on_any_number_of_micro_batches(num_micro_batches):
    shares = balanced_shares(CLASSES)
    assert draws(num_micro_batches, shares=shares) == draws(1, shares=shares)


def test_balanced_draws_follow_the_seed():
    shares = balanced_shares(CLASSES)
    assert draws(shares=shares) == draws(shares=shares)
    assert draws(shares=shares) != draws(shares=shares, seed=6)


def test_plain_sampling_augments_as_it_always_did():
    """Curves of runs without balanced sampling must not change: the first draw has the numbers of (seed, epoch, example)."""
    pairs = [pair for step in draws(2) for pair in step]
    assert sorted(pairs) == [(i, float(np.random.default_rng([5, 0, i]).random())) for i in range(1003)]
    assert example_rng(5, 0, 7, 0).random() == np.random.default_rng([5, 0, 7]).random()


def test_draws_are_counted_over_an_epoch():
    batches = [np.array([4, 1, 4]), np.array([1, 4, 0]), np.array([4])]
    assert [counts.tolist() for counts in count_earlier_draws(batches)] == [[0, 0, 1], [1, 2, 0], [3]]
