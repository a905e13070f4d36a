"""`sft-dist status`: the state of runs, once or again and again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import click

from launch.render import describe_run_states
from launch.slurm.queue import query_states
from sft_dist.recipe.text import printable


def show_status(targets: Sequence[str], runs: str | None, every_s: int | None, as_json: bool) -> None:
    """Prints the states; with `every_s`, until Ctrl-C. Raises UserError."""
    while True:
        text = _status(targets, runs, as_json)
        if every_s is not None and not as_json and sys.stdout.isatty():
            click.clear()
        click.echo(text)
        if every_s is None:
            return
        try:
            time.sleep(every_s)
        except KeyboardInterrupt:  # as the help says
            return


def _status(targets: Sequence[str], runs: str | None, as_json: bool) -> str:
    states, answer, lines = query_states(targets, runs)
    if as_json:
        return json.dumps([state.to_json() for state in states], indent=2, ensure_ascii=False)
    table = describe_run_states(states) if states else "no runs yet"
    return printable("\n".join(line for line in (table, *lines, answer.summary()) if line))
