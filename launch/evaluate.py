"""`sft-dist eval`: hands run folders to the evaluation sweep, and holds its verdict against what was required."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.run_folders import find_run, recipe_folders
from launch.subprocesses import run_module
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json
from sft_dist.recipe.tasks import METRICS
from sft_dist.run.folder import RunFolder

if TYPE_CHECKING:
    from launch.plan import Plan


def choose_folders(targets: Sequence[str], root: Path) -> tuple[list[Path], Path]:
    """The runs to judge, and where their leaderboard goes: above a recipe's runs, or in the one run that was named.

    Targets with a `=` are overrides of the recipes. Raises UserError when nothing was trained yet.
    """
    overrides = [text for text in targets if "=" in text and not Path(text).exists()]
    named = [text for text in targets if text not in overrides]
    folders: list[Path] = []
    for text in named:
        known = Path(text).exists() or text.endswith((".yaml", ".yml")) or "/" in text
        folders += recipe_folders(text, root, overrides) if known else [find_run(text, root)]
    folders = list(dict.fromkeys(folders))
    judged = [folder for folder in folders if any(RunFolder(folder).checkpoints.glob("step-*"))]
    if not judged:
        raise UserError(
            f"{', '.join(named) or 'nothing named'}: no run with a checkpoint in {root}; first: sft-dist run"
        )
    one_run = len(named) == 1 and judged[0] == Path(named[0]).resolve()
    return judged, judged[0] if one_run else judged[0].parent


def sweep(folders: Sequence[Path], leaderboard: Path, force: bool) -> int:
    """Score every checkpoint of these runs; the sweep's exit code."""
    return run_module("sft_dist.evaluate", [*folders, "--leaderboard", leaderboard, *(["--force"] if force else [])])


def leaderboard_folder(plans: Sequence[Plan]) -> Path:
    """Where the leaderboard of submitted runs goes: above them. One run of a matrix has its own, and leaves that of the
    whole as it is."""
    folder = plans[0].folder
    return folder if len(plans) == 1 and plans[0].point else folder.parent


def all_evaluated(folders: Sequence[Path], board_in: Path) -> bool:
    """Does the leaderboard have the newest checkpoint of each? A run without one needs no judge."""
    board = read_json(board_in / "leaderboard.json") or {}
    known = {(row["run"], row["step"]) for row in board.get("rows", [])}
    known |= {(line.split()[0], _step(line.split()[1])) for line in board.get("damaged", [])}
    newest = {folder.name: max(folder.glob("checkpoints/step-*"), default=None) for folder in folders}
    return all(path is None or (run, _step(path.name)) in known for run, path in newest.items())


def _step(name: str) -> int:
    """`step-00000100` -> 100."""
    return int(name.removeprefix("step-"))


def requirement(text: str) -> tuple[str, float]:
    """`accuracy=0.75` -> ("accuracy", 0.75). Raises UserError."""
    metric, _, value = text.partition("=")
    try:
        return metric.strip(), float(value)
    except ValueError:
        raise UserError(f"--require {text}: expected a score and a number, such as accuracy=0.75") from None


def shortfall(leaderboard: dict[str, Any], required: Sequence[tuple[str, float]]) -> list[str]:
    """What the winner's test scores fall short of, one line each. A loss or an error has to be at most the number."""
    scores = (leaderboard.get("winner") or {}).get("test") or {}
    directions = {name: way for known in METRICS.values() for name, way in known.items()}
    lines = []
    for metric, bound in required:
        found = scores.get(metric)
        small_is_good = directions.get(metric) == "min"
        if not isinstance(found, (int, float)):
            known = ", ".join(name for name, value in scores.items() if isinstance(value, (int, float)))
            lines.append(f"required {metric}: the winner has no such test score; it has: {known or 'none'}")
        elif (found > bound) if small_is_good else not (found >= bound):
            lines.append(
                f"required {metric} {'<=' if small_is_good else '>='} {bound:g} on test, the winner has {found:.4f}"
            )
    return lines


def read_leaderboard(folder: Path) -> dict[str, Any]:
    found = read_json(folder / "leaderboard.json")
    if not isinstance(found, dict):
        raise UserError(f"{folder / 'leaderboard.json'}: the sweep wrote no leaderboard")
    return found


def leaderboard_text(folder: Path) -> str:
    text = (folder / "leaderboard.md").read_text(encoding="utf-8")
    return f"{text}\nLeaderboard: {folder / 'leaderboard.md'} and .json"
