"""Where runs are carried out. A backend starts a sealed run and says what became of it."""

from __future__ import annotations

from typing import Protocol

from launch.plan import Plan
from launch.run_state import RunState
from sft_dist.run.folder import RunFolder


class Backend(Protocol):
    """One method: the rest of what a user does with a run goes through its folder."""

    interrupted: bool  # the user asked to stop while a run was going on

    def run(self, folder: RunFolder, plan: Plan) -> RunState:
        """Start a new attempt of a sealed run."""
        ...
