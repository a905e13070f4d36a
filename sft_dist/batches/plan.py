"""The batch plan: which examples make optimizer step k, and on which rank. Pure functions of (lengths, seed, step).

Resuming at step k is therefore "ask for step k": nothing is replayed or skipped, on any number of ranks. A global batch
is divided into `world_size x accumulation` micro-batches. What is in each depends on their number only, not on how ranks
and accumulation share them, so 1x8, 2x4 and 8x1 train on the very same micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Bucketed order sorts this many global batches at a time by length: enough to find equal lengths, few enough to stay random.
BUCKET_BATCHES = 50


def epoch_batches(
    lengths: np.ndarray,  # (examples,) tokens of each example
    seed: int,
    epoch: int,
    global_batch: int,
    batching: str,  # plain | bucketed
    shares: np.ndarray | None = None,  # (examples,) how often each is drawn, adding up to 1; None: each once
) -> list[np.ndarray]:
    """Returns the global batches of an epoch, as indices of as many examples as there are; the last batch may be smaller."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)) if shares is None else rng.choice(len(lengths), len(lengths), p=shares)
    if batching == "plain":
        return _cut(order, global_batch)
    batches: list[np.ndarray] = []
    for chunk in _cut(order, BUCKET_BATCHES * global_batch):
        # Stable sort of a shuffled chunk: equal lengths stay in random order.
        batches += _cut(chunk[np.argsort(-lengths[chunk], kind="stable")], global_batch)
    return [batches[i] for i in rng.permutation(len(batches))]


def split_batch(batch: np.ndarray, lengths: np.ndarray, num_micro_batches: int) -> list[np.ndarray]:
    """Divides a global batch into micro-batches of equal size (give or take one) and near-equal tokens.

    Examples are dealt from the longest to the shortest, back and forth, so that no micro-batch gets all the long ones.
    """
    return [batch[positions] for positions in _deal(batch, lengths, num_micro_batches)]


def _deal(batch: np.ndarray, lengths: np.ndarray, num_micro_batches: int) -> list[np.ndarray]:
    """Returns for each micro-batch the positions of its examples in the batch."""
    order = np.argsort(-lengths[batch], kind="stable")
    round_number, seat = np.divmod(np.arange(len(order)), num_micro_batches)
    micro_batch = np.where(round_number % 2 == 0, seat, num_micro_batches - 1 - seat)
    return [order[micro_batch == i] for i in range(num_micro_batches)]


def balanced_shares(classes: np.ndarray) -> np.ndarray:  # (examples,) class numbers -> (examples,) shares of draws
    """Shares under which every class that occurs is drawn equally often."""
    _, class_index, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[class_index])


def micro_batch_seed(seed: int, step: int, micro_batch: int) -> int:
    """Seed of the random numbers (dropout) used in one micro-batch: the same wherever and whenever it is computed."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> 1)


def count_earlier_draws(batches: list[np.ndarray]) -> list[np.ndarray]:
    """Counts, for each draw of an epoch, the earlier draws of the same example: all 0 where each is drawn once."""
    draws = np.concatenate(batches)
    order = np.argsort(draws, kind="stable")
    first = np.searchsorted(draws[order], draws[order])  # of each example's draws
    earlier_draws = np.empty_like(order)
    earlier_draws[order] = np.arange(len(draws)) - first
    return np.split(earlier_draws, np.cumsum([len(batch) for batch in batches])[:-1])


def example_rng(seed: int, epoch: int, example: int, earlier_draws: int = 0) -> np.random.Generator:
    """Random numbers for the augmentation of one example: new in every epoch and, counting the earlier draws of the same
    example in the epoch, at every draw; the same on any rank."""
    return np.random.default_rng([seed, epoch, example, *([earlier_draws] if earlier_draws else [])])


@dataclass
class BatchPlan:
    """Global batches by optimizer step, counted from 1."""

    lengths: np.ndarray  # (examples,)
    seed: int
    global_batch: int
    batching: str
    shares: np.ndarray | None = None  # (examples,) of draws, for examples that are not all drawn equally often
    first_step: int = 1  # of the first epoch, and that epoch's number: each chunk of a stream has a plan of its own
    first_epoch: int = 0
    _epoch: tuple[int, list[np.ndarray], list[np.ndarray]] = field(default=(-1, [], []), repr=False)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.global_batch)

    def at(self, step: int) -> np.ndarray:
        """Returns the indices of a step's examples."""
        return self._draws(step)[0]

    def _draws(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the step's examples, and how often each was drawn before in its epoch."""
        epoch, index = self.epoch_of(step), (step - self.first_step) % self.steps_per_epoch
        if self._epoch[0] != epoch:
            batches = self._batches(epoch)
            self._epoch = (epoch, batches, count_earlier_draws(batches) if self.shares is not None else [])
        _, batches, earlier_draws = self._epoch
        return batches[index], earlier_draws[index] if earlier_draws else np.zeros(len(batches[index]), dtype=np.int64)

    def epoch_of(self, step: int) -> int:
        return self.first_epoch + (step - self.first_step) // self.steps_per_epoch

    def _batches(self, epoch: int) -> list[np.ndarray]:
        return epoch_batches(self.lengths, self.seed, epoch, self.global_batch, self.batching, self.shares)

    def micro_batches(self, step: int, num_micro_batches: int) -> list[np.ndarray]:
        return split_batch(self.at(step), self.lengths, num_micro_batches)

    def earlier_draws(self, step: int, num_micro_batches: int) -> list[np.ndarray]:
        """For each example in `micro_batches`: how often it was drawn before in its epoch."""
        batch, earlier_draws = self._draws(step)
        return [earlier_draws[positions] for positions in _deal(batch, self.lengths, num_micro_batches)]


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]
