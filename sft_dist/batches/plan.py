"""The batch plan: which examples make optimizer step k, and on which rank. Pure functions of (lengths, seed, step).

Resuming at step k is therefore "ask for step k": nothing is replayed or skipped, on any number of ranks. A global batch
is divided into `world_size x accumulation` *slots*, one micro-batch each. What is in a slot depends on the number of
slots only, not on how ranks and accumulation share them, so 1x8, 2x4 and 8x1 train on the very same micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Bucketed order sorts this many global batches at a time by length: long enough to find equals, short enough to stay random.
BUCKET_BATCHES = 50


def epoch_batches(
    lengths: np.ndarray,  # (examples,) tokens of each example
    seed: int,
    epoch: int,
    global_batch: int,
    batching: str,  # plain | bucketed
    shares: np.ndarray | None = None,  # (examples,) how often each is drawn, adding up to 1; None: each once
) -> list[np.ndarray]:
    """As many examples as there are, as global batches of indices; the last one may be smaller."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)) if shares is None else rng.choice(len(lengths), len(lengths), p=shares)
    if batching == "plain":
        return _cut(order, global_batch)
    batches: list[np.ndarray] = []
    for chunk in _cut(order, BUCKET_BATCHES * global_batch):
        # Stable sort of a shuffled chunk: equal lengths stay in random order.
        batches += _cut(chunk[np.argsort(-lengths[chunk], kind="stable")], global_batch)
    return [batches[i] for i in rng.permutation(len(batches))]


def slots_of(batch: np.ndarray, lengths: np.ndarray, num_slots: int) -> list[np.ndarray]:
    """Divide a global batch into `num_slots` micro-batches of equal size (one more or less) and near-equal tokens.

    Dealt from the longest example to the shortest, there and back again, so no slot gets all the long ones.
    """
    return [batch[places] for places in _dealt(batch, lengths, num_slots)]


def _dealt(batch: np.ndarray, lengths: np.ndarray, num_slots: int) -> list[np.ndarray]:
    """Of each slot the places of its examples in the batch."""
    order = np.argsort(-lengths[batch], kind="stable")
    turn, seat = np.divmod(np.arange(len(order)), num_slots)
    slot = np.where(turn % 2 == 0, seat, num_slots - 1 - seat)
    return [order[slot == i] for i in range(num_slots)]


def balanced_shares(classes: np.ndarray) -> np.ndarray:  # (examples,) class numbers -> (examples,) shares of draws
    """Every class that occurs is drawn equally often."""
    _, place, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[place])


def slot_seed(seed: int, step: int, slot: int) -> int:
    """Seed of the random numbers (dropout) used in one micro-batch: the same wherever and whenever it is computed."""
    return int(np.random.SeedSequence([seed, step, slot]).generate_state(1, np.uint64)[0] >> 1)


def times_before(batches: list[np.ndarray]) -> list[np.ndarray]:
    """Of each draw of an epoch how often the same example was drawn before it: 0 everywhere where each is drawn once."""
    drawn = np.concatenate(batches)
    order = np.argsort(drawn, kind="stable")
    first = np.searchsorted(drawn[order], drawn[order])  # of each example's draws
    before = np.empty_like(order)
    before[order] = np.arange(len(drawn)) - first
    return np.split(before, np.cumsum([len(batch) for batch in batches])[:-1])


def example_rng(seed: int, epoch: int, example: int, before: int = 0) -> np.random.Generator:
    """Random numbers for the augmentation of one example: new in every epoch and, with `before` draws of the same example
    earlier in the epoch, at every draw; the same on whatever rank."""
    return np.random.default_rng([seed, epoch, example, *([before] if before else [])])


@dataclass
class BatchPlan:
    """Global batches by optimizer step, counted from 1."""

    lengths: np.ndarray  # (examples,)
    seed: int
    global_batch: int
    batching: str
    shares: np.ndarray | None = None  # (examples,) of draws, for examples that are not all drawn equally often
    first_step: int = 1  # of the first epoch, and that epoch's number: a block of a stream is one in a row of plans
    first_epoch: int = 0
    _epoch: tuple[int, list[np.ndarray], list[np.ndarray]] = field(default=(-1, [], []), repr=False)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.global_batch)

    def at(self, step: int) -> np.ndarray:
        """Indices of the examples of step `step`."""
        return self._drawn(step)[0]

    def _drawn(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The step's examples, and how often each was drawn before in its epoch."""
        epoch, index = self.epoch_of(step), (step - self.first_step) % self.steps_per_epoch
        if self._epoch[0] != epoch:
            batches = self._batches(epoch)
            self._epoch = (epoch, batches, times_before(batches) if self.shares is not None else [])
        _, batches, before = self._epoch
        return batches[index], before[index] if before else np.zeros(len(batches[index]), dtype=np.int64)

    def epoch_of(self, step: int) -> int:
        return self.first_epoch + (step - self.first_step) // self.steps_per_epoch

    def _batches(self, epoch: int) -> list[np.ndarray]:
        return epoch_batches(self.lengths, self.seed, epoch, self.global_batch, self.batching, self.shares)

    def slots(self, step: int, num_slots: int) -> list[np.ndarray]:
        return slots_of(self.at(step), self.lengths, num_slots)

    def times_before(self, step: int, num_slots: int) -> list[np.ndarray]:
        """Of each example in `slots` how often it was drawn before in its epoch."""
        batch, before = self._drawn(step)
        return [before[places] for places in _dealt(batch, self.lengths, num_slots)]


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]
