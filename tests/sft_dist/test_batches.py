"""The batch plan: every example once an epoch, the same on any topology, balanced in tokens, asked for by step."""

import numpy as np
import pytest

from sft_dist.batches import BatchPlan, epoch_batches, slot_seed, slots_of

LENGTHS = np.random.default_rng(0).integers(3, 200, size=1003)


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
