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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_dist.evaluation.leaderboard import common_metric, compose, rank_key, render, undefined_everywhere
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import write_json, write_text
from sft_dist.recipe.schema import LmEval, Recipe
from sft_dist.recipe.trust import add_options, require_task_trust, require_trust, trust_in
from sft_dist.recipe.tunings import export_form
from sft_dist.run.candidates import Averaging, parse_averaging
from sft_dist.run.folder import BASE_MODEL, RunFolder

log = logging.getLogger("sft_dist")

Reference = RunFolder | str | None  # what the winner should not be worse than: a run's best checkpoint, or BASE_MODEL
INTERRUPTED = 130  # exit code of a program that Ctrl-C ended


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
    parser.add_argument("--force", action="store_true", help="re-evaluate checkpoints that have scores")
    parser.add_argument(
        "--no-worse-than",
        metavar=f"RUN|{BASE_MODEL}",
        help="compare the winner with this run's best checkpoint, or with the base model",
    )
    parser.add_argument(
        "--follow", action="store_true", help="score checkpoints as they are written, until the runs end"
    )
    parser.add_argument(
        "--slice",
        action="append",
        metavar="COLUMN",
        dest="slices",
        help="replaces evaluate.slices of the runs (repeatable)",
    )
    parser.add_argument(
        "--temperature", action="store_true", help="export the temperature that is fitted on validation"
    )
    parser.add_argument("--lm-eval", metavar="JSON", help="general tasks, as `evaluate.lm_eval` of a recipe has them")
    parser.add_argument(
        "--average", action="append", default=[], metavar="last:K|greedy", help="also choose among means of checkpoints"
    )
    parser.add_argument("--score-only", action="store_true", help="score on validation, and choose nothing")
    parser.add_argument("--device-number", type=int, default=0, metavar="N", help="which GPU, modulo their number")
    add_options(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.umask(0o077)
    folders = [RunFolder(path.resolve()) for path in options.runs]
    try:
        reference = _reference(options.no_worse_than)
        loaded = [*folders, *([reference] if isinstance(reference, RunFolder) else [])]
        _require_run_folders(loaded)
        for folder in loaded:
            require_trust(folder.recipe(), trust_in(options), folder.recipe_file)
        changes = _evaluation_changes(options.slices, options.temperature, options.lm_eval)
        for folder in folders:
            require_task_trust(_changed(folder.recipe(), changes), trust_in(options), folder.recipe_file)
        if options.score_only:
            score(folders, options.device_number)
        else:
            averagings = list(map(parse_averaging, options.average))
            sweep_and_track(folders, options.leaderboard, options.force, options.follow, reference, changes, averagings)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: scores so far are kept; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return 0


def _reference(name: str | None) -> Reference:
    if name is None or name == BASE_MODEL:
        return name
    return RunFolder(Path(name).resolve())


def score_run(run: Path) -> None:
    """Scores every checkpoint of one run on validation: one job of a sweep. Scored checkpoints stay scored."""
    score([RunFolder(run)])


def score_share(order: Path) -> None:
    """Scores a share of the checkpoints of several runs on validation, in one job. `order` is a JSON file with `runs`, and the
    `index` of the share among `count`."""
    request = json.loads(order.read_text(encoding="utf-8"))
    score([RunFolder(Path(path)) for path in request["runs"]], share=(request["index"], request["count"]))


def score(folders: list[RunFolder], device_number: int = 0, share: tuple[int, int] = (0, 1)) -> None:
    """Scores every checkpoint of a share on validation that no other process is scoring."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.evaluation.evaluator import Evaluator
    from sft_dist.evaluation.sweep import ValidationScores
    from sft_dist.logging_setup import quiet_libraries

    quiet_libraries()
    recipes = {folder: folder.recipe() for folder in folders}
    validation = ValidationScores(Evaluator(device_number), recipes, share=share)
    validation.update()
    if not validation.scored:
        log.info("%s  no checkpoint to evaluate", ", ".join(folder.id for folder in folders))


def evaluate_runs(order: Path) -> None:
    """Chooses among all runs, tests the winner once and exports it, in one job. `order` is a JSON file with `runs`, `leaderboard`
    and, for means of checkpoints, `average`; runs that saved nothing are skipped."""
    request = json.loads(order.read_text(encoding="utf-8"))
    saved = [folder for folder in map(RunFolder, map(Path, request["runs"])) if any(folder.checkpoints.glob("step-*"))]
    if saved:
        averagings = list(map(parse_averaging, request.get("average", [])))
        sweep_and_track(saved, Path(request["leaderboard"]), averagings=averagings)
    else:
        log.info("none of these runs saved a checkpoint, so there is nothing to evaluate")


def sweep_and_track(
    folders: list[RunFolder],
    leaderboard: Path | None = None,
    force: bool = False,
    follow: bool = False,
    reference: Reference = None,
    changes: Mapping[str, Any] | None = None,
    averagings: Sequence[Averaging] = (),
) -> None:
    """Sweeps, and logs the scores to the trackers of the runs. Raises UserError as `sweep` does."""
    board = sweep(folders, leaderboard, force, follow, reference, changes, averagings)
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.trackers import track_sweep

    track_sweep(folders, board, leaderboard or leaderboard_folder(folders))


def leaderboard_folder(folders: list[RunFolder]) -> Path:
    """Returns where the leaderboard goes unless it is said: into the only run, or above several."""
    return folders[0].path if len(folders) == 1 else folders[0].path.parent


def sweep(
    folders: list[RunFolder],
    leaderboard: Path | None = None,
    force: bool = False,
    follow: bool = False,
    reference: Reference = None,
    changes: Mapping[str, Any] | None = None,  # settings of `evaluate` that replace those of the runs
    averagings: Sequence[Averaging] = (),  # means of checkpoints that are candidates, too
) -> dict[str, Any]:
    """Returns what leaderboard.json holds; with `follow`, once all runs have ended. Raises UserError when there is nothing to
    evaluate or runs cannot be compared."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.checkpoints.store import Checkpoint
    from sft_dist.data.slices import slice_columns
    from sft_dist.evaluation.averages import AverageScores, remove_others
    from sft_dist.evaluation.base_comparison import BaseComparison, worse_lines
    from sft_dist.evaluation.baseline import worse_than
    from sft_dist.evaluation.comparison import AnswersReader, with_statistics
    from sft_dist.evaluation.evaluator import Evaluator
    from sft_dist.evaluation.general_sets import require_lm_eval
    from sft_dist.evaluation.slices import with_slices
    from sft_dist.evaluation.sweep import ValidationScores, score_untrained, score_winner
    from sft_dist.logging_setup import quiet_libraries

    quiet_libraries()
    _require_run_folders(folders)
    recipes = {folder: _changed(folder.recipe(), changes or {}) for folder in folders}
    metric, direction = common_metric(list(recipes.values()))
    for run_recipe in recipes.values():
        require_lm_eval(run_recipe)
    evaluator = Evaluator()
    for recipe in recipes.values():
        if recipe.evaluate.slices:  # wrong columns are refused before anything is scored
            slice_columns(evaluator.prepared(recipe), recipe)
    validation = ValidationScores(evaluator, recipes, force)
    if follow:
        validation.follow()
    else:
        validation.update()
    averages = AverageScores(evaluator, recipes, force)
    means = averages.candidates(averagings, validation.scored)
    ranking = sorted([*validation.scored, *means], key=lambda candidate: rank_key(candidate, metric, direction))
    ranking, damaged = validation.exclude_damaged(ranking), validation.damaged
    if not ranking:
        names = ", ".join(str(folder.path) for folder in folders)
        raise UserError(f"no checkpoint to evaluate in {names}" + "".join(f"\n    {line}" for line in damaged))
    winner = ranking[0]
    if note := undefined_everywhere(winner.scores, metric):
        log.warning("%s", note)
    recipe = recipes[winner.folder]
    final: dict[str, dict[str, Any]] = {
        split: score_winner(evaluator, winner, recipe, split, force) for split in recipe.evaluate.report_on
    }
    untrained = score_untrained(evaluator, winner, recipe, force)
    labels = Checkpoint(winner.path, winner.step).trainer_state()["labels"]
    for folder in folders:
        remove_others(folder, winner)
    target = leaderboard or leaderboard_folder(folders)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    reader = AnswersReader(evaluator.prepared)
    board = compose(ranking, recipes, labels, untrained, final, damaged)
    board = with_statistics(board, ranking, recipes, reader, averages.num_scored - len(means))
    board = with_slices(board, winner, recipe, reader)
    if recipe.evaluate.lm_eval or reference == BASE_MODEL:
        comparison = BaseComparison(evaluator, reader, winner, recipe, force)
        board["against_base"] = comparison.board(with_task=reference == BASE_MODEL)
    if reference:
        rows = board["against_base"]["rows"] if reference == BASE_MODEL else []
        board["worse_than_reference"] = (
            worse_than(winner, recipe, reference, reader) if isinstance(reference, RunFolder) else worse_lines(rows)
        )
    _written(target, board)  # before the export, which may be refused: the scores stand all the same
    _warn(board)
    if (form := export_form(recipe)) == "none":
        return board
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.evaluation.temperature import fitted_temperature
    from sft_dist.export import export

    temperature = fitted_temperature(reader, winner, recipe) if recipe.evaluate.temperature else None
    exported = export(
        winner.folder, winner.step, winner.folder.export, form, winner.scores, final, temperature, winner.members
    )
    return _written(target, {**board, "export": str(exported)})


def _evaluation_changes(slices: list[str] | None, temperature: bool, lm_eval: str | None) -> dict[str, Any]:
    changes = {**({"slices": slices} if slices else {}), **({"temperature": True} if temperature else {})}
    try:
        return {**changes, **({"lm_eval": LmEval.model_validate_json(lm_eval)} if lm_eval else {})}
    except ValueError as error:
        raise UserError(Problem(f"not the settings of general tasks: {error}", "--lm-eval", value=lm_eval)) from None


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe of a run, which is sealed, with what is asked of it now."""
    if not changes:
        return recipe
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=changes)})


def _warn(board: dict[str, Any]) -> None:
    for key, model in (("no_better_than_guessing", "guessing"), ("no_better_than_untrained", "the untrained model")):
        if note := board[key]:
            log.warning("the winner is no better than %s: %s", model, note)
    if note := board["test_note"]:
        log.warning("%s", note)


def _written(target: Path, board: dict[str, Any]) -> dict[str, Any]:
    write_json(target / "leaderboard.json", board)
    write_text(target / "leaderboard.md", render(board))
    return board


def _require_run_folders(folders: list[RunFolder]) -> None:
    for folder in folders:
        if not folder.recipe_file.is_file():
            raise UserError(f"{folder.path}: no recipe.json in it, so it is not a run folder")


if __name__ == "__main__":
    sys.exit(main())
