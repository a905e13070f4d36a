"""A function call that is sent to a node of a cluster, as the names of the function and of one path.

The function reads all else below that path, so no object of this process has to be pickled.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import UserError

NO_LIMIT_MIN = 365 * 24 * 60  # minutes


@dataclass(frozen=True)
class Call:
    """submitit calls it on the node. The function must be able to resume from its own files."""

    function: str  # of this package: "sft_dist.evaluate:score_run"
    path: str

    def __call__(self) -> None:
        module, _, name = self.function.partition(":")
        if not module.startswith("sft_dist."):
            raise ValueError(f"{self.function} is not a function of this package")
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        os.umask(0o077)
        _set_missing_time_limit()
        try:
            getattr(importlib.import_module(module), name)(Path(self.path))
        except UserError as error:
            raise SystemExit(str(error)) from None

    def checkpoint(self) -> Any:
        """Returns what submitit requeues the job with, after Slurm's warning."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _set_missing_time_limit() -> None:
    """Sets the time limit that submitit (1.5) compares with on Slurm's warning; it fails if none was requested."""
    from submitit.core.job_environment import JobEnvironment

    handler = getattr(signal.getsignal(JobEnvironment._usr_sig()), "__self__", None)
    delayed = getattr(handler, "_delayed", None)
    if delayed is not None and delayed._timeout_min is None:
        delayed._timeout_min = NO_LIMIT_MIN
