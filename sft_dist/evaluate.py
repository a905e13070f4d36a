"""`python -m sft_dist.evaluate RUN...`: score every checkpoint, choose on validation, test the winner once.

One process reads data and base model once and swaps weights in place. A checkpoint that was scored before (same bytes,
same recipe) is not scored again, and the test split is only ever scored for a winner.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from sft_dist.evaluation.leaderboard import Scored, common_metric, compose, rank_key, render
from sft_dist.recipe.errors import UserError
<<<<<<< HEAD
from sft_dist.recipe.files import read_json, write_json, write_text
from sft_dist.recipe.metrics import directions, selection_metric
from sft_dist.recipe.schema import Recipe
=======
from sft_dist.recipe.files import write_json, write_text
>>>>>>> main
from sft_dist.recipe.tunings import export_form
from sft_dist.run.folder import RunFolder

log = logging.getLogger("sft_dist")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.evaluate",
        description="Score every checkpoint of the runs, choose on validation, score the winner on test once.",
        epilog="example: python -m sft_dist.evaluate runs/quickstart/*",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument(
        "--leaderboard", type=Path, help="folder for leaderboard.md and .json (the run's, or their parent)"
    )
    parser.add_argument("--force", action="store_true", help="score again what has been scored")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.umask(0o077)
    try:
        sweep([RunFolder(path.resolve()) for path in options.runs], options.leaderboard, options.force)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def score_run(run: Path) -> None:
    """Scores every checkpoint of one run on validation: one job of a sweep. Scored checkpoints stay scored."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.evaluation.evaluator import Evaluator
    from sft_dist.evaluation.sweep import score_checkpoints
    from sft_dist.logging_setup import quiet_libraries

    quiet_libraries()
    folder = RunFolder(run)
    if not list(score_checkpoints(Evaluator(), folder, folder.recipe(), False, [])):
        log.info("%s  no checkpoint to evaluate", folder.id)


def evaluate_runs(order: Path) -> None:
    """Chooses among all runs, tests the winner once and exports it, in one job. `order` is a JSON file with `runs` and
    `leaderboard`; runs that saved nothing are skipped."""
    request = json.loads(order.read_text(encoding="utf-8"))
    saved = [folder for folder in map(RunFolder, map(Path, request["runs"])) if any(folder.checkpoints.glob("step-*"))]
    if saved:
        sweep(saved, Path(request["leaderboard"]))
    else:
        log.info("none of these runs saved a checkpoint, so there is nothing to evaluate")


def sweep(folders: list[RunFolder], leaderboard: Path | None = None, force: bool = False) -> dict[str, Any]:
    """Returns what leaderboard.json holds. Raises UserError when there is nothing to evaluate or runs cannot be compared."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.checkpoints.store import Checkpoint
    from sft_dist.evaluation.evaluator import Evaluator
    from sft_dist.evaluation.sweep import score_checkpoints, score_winner
    from sft_dist.logging_setup import quiet_libraries

    quiet_libraries()
    for folder in folders:
        if not folder.recipe_file.is_file():
            raise UserError(f"{folder.path}: no recipe.json in it, so it is not a run folder")
    recipes = {folder: folder.recipe() for folder in folders}
    metric, direction = common_metric(list(recipes.values()))
    evaluator = Evaluator()
    scored: list[Scored] = []
    damaged: list[str] = []
    for folder, recipe in recipes.items():
        scored += score_checkpoints(evaluator, folder, recipe, force, damaged)
    if not scored:
        names = ", ".join(str(folder.path) for folder in folders)
        raise UserError(f"no checkpoint to evaluate in {names}" + "".join(f"\n    {line}" for line in damaged))
    ranking = sorted(scored, key=lambda candidate: rank_key(candidate, metric, direction))
    winner = ranking[0]
    recipe = recipes[winner.folder]
    final: dict[str, dict[str, Any]] = {
        split: score_winner(evaluator, winner, recipe, split, force) for split in recipe.evaluate.report_on
    }
    exported = None
    if (form := export_form(recipe)) != "none":
        # Imported late: invalid arguments are refused before torch is loaded.
        from sft_dist.export import export

        exported = export(winner.folder, winner.step, winner.folder.export, form, winner.scores, final)
    labels = Checkpoint(winner.folder.checkpoint(winner.step), winner.step).trainer_state()["labels"]
    target = leaderboard or (folders[0].path if len(folders) == 1 else folders[0].path.parent)
<<<<<<< HEAD
    board: dict[str, Any] = {
        "metric": metric,
        "direction": direction,
        "directions": directions(recipe),
        "chosen_on": "validation",
        "labels": ckpt.Checkpoint(winner.folder.checkpoint(winner.step), winner.step).trainer_state()["labels"],
        "winner": {
            "run": winner.folder.id,
            "folder": str(winner.folder.path),
            "step": winner.step,
            "checkpoint": str(winner.folder.checkpoint(winner.step)),
            "validation": winner.scores,
            **final,
        },
        "rows": [
            {"run": entry.folder.id, "folder": str(entry.folder.path), "step": entry.step, "validation": entry.scores}
            for entry in ranking
        ],
        "differences": _differences(recipes),
        "damaged": damaged,
        "export": str(exported) if exported else None,
    }
=======
    board = compose(ranking, recipes, labels, final, damaged, exported)
>>>>>>> main
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(target / "leaderboard.json", board)
    write_text(target / "leaderboard.md", render(board))
    return board


<<<<<<< HEAD
def _score_run(evaluator: Any, folder: RunFolder, recipe: Recipe, force: bool, damaged: list[str]) -> Iterator[Scored]:
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.checkpoints import store as ckpt

    checkpoints = ckpt.published(folder)
    for number, checkpoint in enumerate(checkpoints, 1):
        try:
            problems = ckpt.verify(checkpoint)
            fingerprint = checkpoint.fingerprint()
        except FileNotFoundError:
            continue  # training continues and has just deleted it
        if problems:
            damaged.append(f"{folder.id} {checkpoint.path.name} is damaged and excluded: {'; '.join(problems)}")
            log.warning("%s", damaged[-1])
            continue
        record_file = folder.evaluation / f"{checkpoint.path.name}.validation.json"
        record = read_json(record_file)
        if force or not record or record.get("checkpoint") != fingerprint:
            scores = evaluator.score(recipe, checkpoint, "validation")
            folder.evaluation.mkdir(mode=0o700, exist_ok=True)
            record = {"step": checkpoint.step, "split": "validation", "checkpoint": fingerprint, "scores": scores}
            write_json(record_file, record)
        metric, _ = selection_metric(recipe)
        log.info(
            "%s  checkpoint %d/%d  step %d  validation %s %s",
            folder.id, number, len(checkpoints), checkpoint.step, metric, _cell(record["scores"].get(metric)),
        )  # fmt: skip
        yield Scored(folder, checkpoint.step, fingerprint, record["scores"])


def _score_once(evaluator: Any, winner: Scored, recipe: Recipe, split: str, force: bool) -> dict[str, Any]:
    """Scores of the winner on a split that is not used for choosing; kept, so that asking again does not score again."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.checkpoints.store import Checkpoint

    record_file = winner.folder.evaluation / f"step-{winner.step:08d}.{split}.json"
    record = read_json(record_file)
    if not force and record and record.get("checkpoint") == winner.fingerprint:
        return record["scores"]
    checkpoint = Checkpoint(winner.folder.checkpoint(winner.step), winner.step)
    scores = evaluator.score(recipe, checkpoint, split)
    write_json(record_file, {"step": winner.step, "split": split, "checkpoint": winner.fingerprint, "scores": scores})
    return scores


def _common_metric(recipes: list[Recipe]) -> tuple[str, str]:
    choices = set(map(selection_metric, recipes))
    if len(choices) > 1:
        raise UserError(f"the runs choose by different scores ({sorted(choices)}), so they have no common winner")
    return choices.pop()


def _rank_key(candidate: Scored, metric: str, direction: str) -> tuple[float, float, int]:
    """Best score first, then the lower loss, then the earlier step; an undefined score comes last."""
    sign = -1.0 if direction == "max" else 1.0
    return (_sort_value(candidate.scores.get(metric), sign), _sort_value(candidate.scores.get("loss")), candidate.step)


def _sort_value(score: float | None, sign: float = 1.0) -> float:
    """NaN, which an older record may hold, sorts last like an undefined score."""
    return sign * score if score is not None and math.isfinite(score) else math.inf


def _differences(recipes: dict[RunFolder, Recipe]) -> dict[str, dict[str, Any]]:
    """Run id -> the settings in which the runs differ."""
    flat = {folder.id: dict(_leaves(recipe.model_dump())) for folder, recipe in recipes.items()}
    keys = sorted({key for settings in flat.values() for key in settings})
    differing = [key for key in keys if len({repr(settings.get(key)) for settings in flat.values()}) > 1]
    return {run: {key: settings.get(key) for key in differing} for run, settings in flat.items()}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def render(board: dict[str, Any]) -> str:
    """The leaderboard as Markdown, aligned so that it reads well in a terminal too."""
    winner, metric = board["winner"], board["metric"]
    names = [
        name
        for name, value in winner["validation"].items()
        if not isinstance(value, (list, dict)) and name != "examples"
    ]
    names.sort(key=lambda name: name != metric)
    varied = sorted({key for settings in board["differences"].values() for key in settings})
    rows = [["", "run", "step", *varied, *names]]
    for position, row in enumerate(board["rows"], 1):
        settings = board["differences"].get(row["run"], {})
        cells = [str(settings.get(key)) for key in varied] + [_cell(row["validation"].get(name)) for name in names]
        rows.append([str(position), row["run"], str(row["step"]), *cells])
    better = "higher" if board["direction"] == "max" else "lower"
    lines = [
        "# Leaderboard",
        "",
        f"Chosen on validation ({winner['validation']['examples']} examples) by {metric}; {better} is better.",
        "",
        *_table(rows),
        "",
        f"Winner: run {winner['run']}, step {winner['step']} (`{winner['checkpoint']}`).",
    ]
    for split in ("train", "test"):
        if split in winner:
            scores = {name: value for name, value in winner[split].items() if not isinstance(value, (list, dict))}
            lines += ["", f"## The winner on {split}, scored once", ""]
            lines += _table([["score", "value"], *([name, _cell(value)] for name, value in scores.items())])
            lines += _confusion(winner[split].get("confusion_matrix"), board["labels"])
    if undefined := [row for row in board["rows"] if "undefined" in row["validation"]]:
        lines += ["", "## Without scores, ranked last", ""]
        lines += [f"- {row['run']} step {row['step']}: {row['validation']['undefined']['why']}" for row in undefined]
    if board["damaged"]:
        lines += ["", "## Damaged checkpoints, excluded", "", *(f"- {line}" for line in board["damaged"])]
    if board["export"]:
        lines += ["", f"The winner as a Hugging Face folder: `{board['export']}`"]
    return "\n".join(lines) + "\n"


def _confusion(matrix: list[Any] | None, labels: list[str]) -> list[str]:
    """Rows are the true classes, columns the predicted ones; many classes would be unreadable."""
    if not matrix or len(matrix) != len(labels) or len(labels) > 20 or isinstance(matrix[0][0], list):
        return []
    rows = [
        ["true \\ predicted", *labels],
        *([label, *map(str, row)] for label, row in zip(labels, matrix, strict=True)),
    ]
    return ["", *_table(rows)]


def _table(rows: list[list[str]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    padded.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(row)} |" for row in padded]


def _cell(value: Any) -> str:
    return "undefined" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


=======
>>>>>>> main
if __name__ == "__main__":
    sys.exit(main())
