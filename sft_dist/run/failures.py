"""Failures whose message is enough: it is shown without a traceback, and the exit code is 1.

A user's mistake is a UserError (`recipe/errors.py`) and exits with 2. `run/causes.py` matches these types by name.
"""

from __future__ import annotations

from sft_dist.run.causes import cause_of


class Failure(RuntimeError):
    """A failure whose traceback adds nothing to the message."""


class TrainingError(Failure):
    """A loss, a gradient or a weight is NaN or infinite, or too large."""


class DataError(Failure):
    """The task cannot use an example."""


class OutOfMemory(Failure):
    """The GPU or the machine has no memory left."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch has an own type for the GPU; for the machine it raises RuntimeError, Python MemoryError."""
    return cause_of({"type": type(error).__name__, "message": str(error)}) == "out of memory"
