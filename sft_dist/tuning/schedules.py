"""Learning rates over a run: the shares of the peak that transformers' `get_scheduler` gives, to the last bit.

The formulas stand here because the module of `get_scheduler` imports PEFT, which imports bitsandbytes: 2.4 s at each start.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import CosineWithMinLr, CosineWithRestarts, PlainSchedule, Polynomial, Schedule

ShareOfPeak = Callable[[int], float]  # number of steps done -> factor of the learning rate

DEFAULT_TIMESCALE = 10_000  # of `inverse_sqrt` without warm-up


def share_of_peak(schedule: Schedule, warmup: int, total: int, peak: float) -> ShareOfPeak:
    """Returns the schedule as a function of the step. Raises UserError when the final learning rate is not below `peak`."""
    decay = _decay(schedule, warmup, total, peak)
    ramp = 0 if schedule.name == "constant" else warmup
    return lambda step: step / ramp if step < ramp else decay(step)


def _decay(schedule: Schedule, warmup: int, total: int, peak: float) -> ShareOfPeak:
    """Returns what follows the warm-up."""
    num_steps = max(1, total - warmup)
    match schedule:
        case PlainSchedule(name="linear"):
            return lambda step: max(0.0, (total - step) / num_steps)
        case PlainSchedule(name="cosine"):
            return lambda step: _half_cosine((step - warmup) / num_steps)
        case PlainSchedule(name="inverse_sqrt"):
            timescale = warmup or DEFAULT_TIMESCALE
            return lambda step: 1 / math.sqrt((step + timescale - warmup) / timescale)
        case PlainSchedule():
            return lambda step: 1.0
        case CosineWithRestarts():
            return lambda step: _restarted_cosine((step - warmup) / num_steps, schedule.num_cycles)
        case CosineWithMinLr():
            low = schedule.min_lr_rate
            return lambda step: _half_cosine((step - warmup) / num_steps) * (1 - low) + low
        case Polynomial():
            return _polynomial(schedule, warmup, total, peak)


def _half_cosine(progress: float) -> float:
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))


def _restarted_cosine(progress: float, num_cycles: int) -> float:
    return 0.0 if progress >= 1 else _half_cosine(num_cycles * progress % 1)


def _polynomial(schedule: Polynomial, warmup: int, total: int, peak: float) -> ShareOfPeak:
    low = schedule.lr_end
    if peak <= low:
        message = f"lr_end ({low}) must be smaller than lr ({peak})"
        raise UserError(Problem(message, path="train.schedule", value=schedule.name))

    def share(step: int) -> float:
        remaining = 1 - (min(step, total) - warmup) / max(1, total - warmup)
        return ((peak - low) * remaining**schedule.power + low) / peak

    return share
