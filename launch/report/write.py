"""`sft-dist report`: writes the page about runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.report.collect import collect, read_run, title_of
from launch.report.page import pack, render_page
from launch.run_folders import runs_root
from launch.run_state import RunState, states_of
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_text
from sft_dist.run.attempt import timestamp

MAX_DATA_BYTES = 2**20 * 3 // 4  # base64 makes 4 bytes of 3
MAX_POINTS, MIN_POINTS_OF_MANY, MIN_POINTS = 4000, 240, 20  # of a curve


def write_report(targets: Sequence[str], runs: str | None, output: Path | None) -> Path:
    """Returns the file it wrote. Raises UserError when there is no run, and when the file cannot be written."""
    states = states_of(targets, runs)
    if not states:
        raise UserError(f"no runs in {runs_root(runs)}; first: sft-dist run")
    file = output or _default_file(states)
    time = timestamp()
    try:
        write_text(file, render_page(packed_data(states, time), title_of(states)), durable=False)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another file with -o") from error
    return file


def _default_file(states: Sequence[RunState]) -> Path:
    """In a single run's folder, above the runs of a recipe, and above the recipes of several."""
    folders = [Path(state.folder) for state in states]
    if len(folders) == 1:
        return folders[0] / "report.html"
    parents = {folder.parent for folder in folders}
    return (parents.pop() if len(parents) == 1 else folders[0].parent.parent) / "report.html"


def packed_data(states: Sequence[RunState], time: str = "") -> bytes:
    """Returns the page's data within its limit: with half as many points a curve until they fit. `time`: of the page, if it stays as it is."""
    subjects = [read_run(state) for state in states]
    max_points = max(MAX_POINTS // max(len(states), 1), MIN_POINTS_OF_MANY)
    while True:
        content = pack({**collect(subjects, max_points), "time": time})
        if len(content) <= MAX_DATA_BYTES or max_points <= MIN_POINTS:
            return content
        max_points //= 2
