"""A function call that travels to a node of a cluster. What travels is two names, the function's and a path's; whatever
else the function needs to know it reads there, so that nothing of this process has to be pickled."""

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

NO_LIMIT_MIN = 365 * 24 * 60


@dataclass(frozen=True)
class Call:
    """Called on the node, by submitit. The function has to pick up where its own files say it was."""

    function: str  # of this package: "sft_dist.evaluate:score_run"
    path: str

    def __call__(self) -> None:
        module, _, name = self.function.partition(":")
        if not module.startswith("sft_dist."):
            raise ValueError(f"{self.function} is none of this package's functions")
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        os.umask(0o077)
        _know_no_limit()
        try:
            getattr(importlib.import_module(module), name)(Path(self.path))
        except UserError as error:
            raise SystemExit(str(error)) from None

    def checkpoint(self) -> Any:
        """submitit asks for this on Slurm's warning, and puts the job in the queue again with what it gets."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _know_no_limit() -> None:
    """On Slurm's warning submitit (1.5) compares with the time that was asked for, and fails where none was."""
    from submitit.core.job_environment import JobEnvironment

    warned = getattr(signal.getsignal(JobEnvironment._usr_sig()), "__self__", None)
    delayed = getattr(warned, "_delayed", None)
    if delayed is not None and delayed._timeout_min is None:
        delayed._timeout_min = NO_LIMIT_MIN
