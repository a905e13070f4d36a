"""Several examples in one sequence that do not see each other.

Positions restart at every example and no attention mask is given; transformers' decoder models then build the
block-diagonal causal mask from the positions (`masking_utils.find_packed_sequence_indices`), exactly, for eager, sdpa and
flex attention, and as separate sequences for flash attention. A key-value cache turns that off, so it must not be used.
A model that does not read positions this way lets examples see each other silently: `leak` measures it.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import torch
from torch import nn

from sft_dist.tuning.model_options import without_flash


def best_fit_decreasing(
    lengths: np.ndarray,  # (examples,) tokens
    capacity: int,  # no example is longer
) -> list[np.ndarray]:
    """Bins of example indices, each at most `capacity` tokens: from the longest on, an example goes to the fullest bin it
    fits in. At most 11/9 of the fewest possible bins, and one (Johnson 1974). Deterministic; sorted by their first example.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"an example of {int(lengths.max())} tokens does not fit in {capacity}")
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # free tokens -> bins with that many
    spaces: list[int] = []  # the keys of `open_bins`, sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        position = bisect_left(spaces, length)
        if position == len(spaces):
            bin_index, space = len(bins), capacity
            bins.append([])
        else:
            space = spaces[position]
            bin_index = open_bins[space].pop()
            if not open_bins[space]:
                del open_bins[space], spaces[position]
        bins[bin_index].append(index)
        remaining = space - length
        if remaining not in open_bins:
            open_bins[remaining] = []
            insort(spaces, remaining)
        open_bins[remaining].append(bin_index)
    return sorted((np.sort(np.array(members)) for members in bins), key=lambda members: int(members[0]))


def positions(lengths: list[int]) -> list[int]:
    """Positions of the tokens of examples that lie one after the other."""
    return [position for length in lengths for position in range(length)]


@torch.no_grad()
def leak(model: nn.Module, vocabulary: int) -> float:
    """How far the logits of an example move when another takes the place of the one packed before it, relative to the
    largest logit. 0 up to rounding where examples are kept apart, whatever the dtype; measured 0.002 to 0.4 elsewhere."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    rng = np.random.default_rng(0)
    first, substitute, second = (rng.integers(0, vocabulary, size) for size in (7, 7, 9))
    sequences = [np.concatenate([before, second]) for before in (first, substitute)]
    with without_flash(model):
        logits = [
            model(
                input_ids=torch.from_numpy(ids[None]).to(device),
                position_ids=torch.tensor([positions([7, 9])], device=device),
                use_cache=False,
            )
            .logits[0, 7:]
            .float()
            for ids in sequences
        ]
    model.train(was_training)
    return float((logits[0] - logits[1]).abs().max() / logits[0].abs().max())
