"""`sft-dist status`: the state of runs, once or again and again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Sequence

import click

from launch.render import describe_run_states
from launch.run_state import STATES
from launch.slurm.queue import query_states
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.suggest import similar_to
from sft_dist.recipe.text import printable


def show_status(
    targets: Sequence[str], runs: str | None, every_s: int | None, as_json: bool, selected: Collection[str] = ()
) -> None:
    """Prints the states, or only those `selected`; with `every_s`, until Ctrl-C. Raises UserError."""
    if unknown := [state for state in selected if state not in STATES]:
        hint = similar_to(unknown[0], STATES)
        raise UserError(Problem("no such state", "--state", value=unknown[0], valid=STATES, hint=hint))
    while True:
        text = _status(targets, runs, as_json, selected)
        if every_s is not None and not as_json and sys.stdout.isatty():
            click.clear()
        click.echo(text)
        if every_s is None:
            return
        try:
            time.sleep(every_s)
        except KeyboardInterrupt:  # as the help says
            return


def _status(targets: Sequence[str], runs: str | None, as_json: bool, selected: Collection[str]) -> str:
    states, answer, lines = query_states(targets, runs)
    num_runs = len(states)
    states = [state for state in states if not selected or state.state in selected]
    if as_json:
        return json.dumps([state.to_json() for state in states], indent=2, ensure_ascii=False)
    empty = f"none of {num_runs} runs is {' or '.join(selected)}" if num_runs else "no runs yet"
    table = describe_run_states(states) if states else empty
    return printable("\n".join(line for line in (table, *lines, answer.summary()) if line))
