"""Failures that say themselves what is wrong: their message is shown without a traceback, and the exit code is 1.

A user's mistake is a UserError (`recipe/errors.py`) and ends with 2. `recipe/verdict.py` knows these types by name.
"""

from __future__ import annotations

from sft_dist.run.causes import cause_of


class Failure(RuntimeError):
    """Nothing in the traceback would add to the message."""


class TrainingError(Failure):
    """A loss, a gradient or a weight that is no number, or too large."""


class DataError(Failure):
    """An example that the task cannot use."""


class OutOfMemory(Failure):
    """Of the GPU or of the machine."""


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a type of its own for the GPU; for the machine it raises a RuntimeError, Python a MemoryError."""
    return cause_of({"type": type(error).__name__, "message": str(error)}) == "out of memory"
