"""`sft-dist eval`: starts the evaluation sweep over run folders; `--require` and `--no-worse-than` decide about the exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.run_folders import find_run, find_runs, is_one_run
from launch.subprocesses import run_module, start_module
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json
from sft_dist.recipe.tasks import TASKS
from sft_dist.recipe.trust import NO_TRUST, Trust, require_task_trust, require_trust
from sft_dist.run.folder import BASE_MODEL, RunFolder

if TYPE_CHECKING:
    from launch.plan import Plan
    from sft_dist.recipe.schema import Recipe


def evaluate_runs(
    targets: Sequence[str],
    root: Path,
    required: Sequence[str],
    force: bool,
    as_json: bool,
    trust: Trust = NO_TRUST,
    reference: str | None = None,
    processes: int = 1,
    follow: bool = False,
    averages: Sequence[str] = (),
) -> int:
    """Evaluates every checkpoint of the targets and prints the leaderboard; returns the exit code. Raises UserError."""
    bounds = [parse_requirement(text) for text in required]
    folders, leaderboard_in = find_folders(targets, root, follow)
    recipes = recipes_in(targets)
    trust |= Trust.in_recipes(recipes)
    compared = find_run(reference, root) if reference and reference != BASE_MODEL else reference
    changes = [*changes_in(recipes), *(f"--average={averaging}" for averaging in averages)]
    if code := run_sweep(folders, leaderboard_in, force, trust, compared, processes, follow, changes):
        return code
    leaderboard = read_leaderboard(leaderboard_in)
    print(json.dumps(leaderboard, indent=2, ensure_ascii=False) if as_json else _leaderboard_text(leaderboard_in))
    lines = [*missed_requirements(leaderboard, bounds), *leaderboard.get("worse_than_reference", [])]
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


def find_folders(targets: Sequence[str], root: Path, untrained: bool = False) -> tuple[list[Path], Path]:
    """Returns the runs to evaluate, and where their leaderboard goes: above a recipe's runs, or in a single run that was named.

    Targets with a `=` are overrides of the recipes. Raises UserError when nothing was trained yet; with `untrained`, when there
    is no run.
    """
    names, overrides = _split_targets(targets)
    folders = [folder for text in names for folder in find_runs(text, root, overrides)]
    trained = [path for path in dict.fromkeys(folders) if untrained or any(RunFolder(path).checkpoints.glob("step-*"))]
    if not trained:
        raise UserError(f"{', '.join(names) or 'no target'}: no run with a checkpoint in {root}; first: sft-dist run")
    return trained, trained[0] if len(trained) == 1 and is_one_run(names[0]) else trained[0].parent


def _split_targets(targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns recipes, folders and ids, and the overrides among the targets."""
    overrides = [text for text in targets if "=" in text and not Path(text).exists()]
    return [text for text in targets if text not in overrides], overrides


def recipes_in(targets: Sequence[str]) -> list[Recipe]:
    """Returns the recipes that were named by their files, expanded: what they consent to and ask for counts. Run folders and ids
    stand for what their runs were made of."""
    names, overrides = _split_targets(targets)
    files = [text for text in names if Path(text).is_file()]
    if not files:
        return []
    from launch.expand import expand  # reads YAML; evaluating a run folder does not
    from sft_dist.recipe.load import read

    return [run.recipe for file in files for run in expand(read(file, overrides))]


def changes_in(recipes: Sequence[Recipe]) -> list[str]:
    """Returns the options by which a sweep follows what recipes say now of slices, temperature and general tasks: runs have what they
    said when these were made. Raises UserError where they name different general tasks."""
    settings = [recipe.evaluate for recipe in recipes]
    general = list(dict.fromkeys(evaluate.lm_eval.model_dump_json() for evaluate in settings if evaluate.lm_eval))
    if len(general) > 1:
        hint = "evaluate their runs one recipe after another"
        raise UserError(Problem("the recipes name different general tasks", "evaluate.lm_eval", hint=hint))
    columns = dict.fromkeys(column for evaluate in settings for column in evaluate.slices)
    options = [word for column in columns for word in ("--slice", column)]
    options += ["--temperature"] if any(evaluate.temperature for evaluate in settings) else []
    return [*options, *(f"--lm-eval={content}" for content in general)]


def run_sweep(
    folders: Sequence[Path],
    leaderboard: Path,
    force: bool,
    trust: Trust = NO_TRUST,
    reference: Path | str | None = None,  # a run folder, or BASE_MODEL
    processes: int = 1,
    follow: bool = False,
    changes: Sequence[str] = (),  # options of sft_dist.evaluate: settings that replace those of the runs, and means
) -> int:
    """Evaluates every checkpoint of these runs; returns the sweep's exit code. Further processes share the scoring, a checkpoint at
    a time, and the sweep itself waits for them, or scores what they did not. Raises UserError before anything is started or removed."""
    for folder in map(RunFolder, [*folders, *([reference] if isinstance(reference, Path) else [])]):
        recipe = folder.recipe()
        require_trust(recipe, trust, folder.recipe_file)
        require_task_trust(recipe, trust, folder.recipe_file)
    if force and processes > 1:
        forget_scores(folders)
        force = False
    env = _shared_cores(processes)
    helpers = [
        start_module(
            "sft_dist.evaluate", [*folders, "--score-only", "--device-number", str(number), *trust.arguments()], env
        )
        for number in range(1, processes)
    ]
    options = [*(["--force"] if force else []), *(["--follow"] if follow else []), *trust.arguments()]
    options += ["--no-worse-than", str(reference)] if reference else []
    options += changes
    try:
        return run_module("sft_dist.evaluate", [*folders, "--leaderboard", leaderboard, *options], env)
    finally:
        for helper in helpers:
            helper.terminate()  # nothing is left to score, or the sweep has failed
            helper.wait()


def evaluate_model(
    targets: Sequence[str], model: str, data: Sequence[str], as_json: bool, trust: Trust = NO_TRUST
) -> int:
    """Prints the scores of a model under a recipe; returns the exit code."""
    options = [f"--model={model}", *(f"--data={source}" for source in data), *(["--json"] if as_json else [])]
    return run_module("sft_dist.evaluate_model", [*options, *trust.arguments(), "--", *targets])


def forget_scores(folders: Sequence[Path]) -> None:
    """Removes all scores, so that processes that share the scoring make each of them again once."""
    for folder in folders:
        for pattern in ("step-*.json", "mean-*.json", "untrained.*.json", "base.*.json"):
            for file in RunFolder(folder).evaluation.glob(pattern):
                file.unlink(missing_ok=True)  # another process may do the same


def _shared_cores(processes: int) -> dict[str, str]:
    """Returns the environment by which each process uses its share of the cores. One process decides for itself."""
    if processes == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes))}


def leaderboard_folder(plans: Sequence[Plan]) -> Path:
    """Returns where the leaderboard of submitted runs goes: above them. A single run of a matrix has its own, and does not
    replace that of all runs."""
    folder = plans[0].folder
    return folder if len(plans) == 1 and plans[0].point else folder.parent


def all_evaluated(folders: Sequence[Path], leaderboard_in: Path) -> bool:
    """Whether the leaderboard has the newest checkpoint of each run. A run without one needs no evaluation."""
    leaderboard = read_json(leaderboard_in / "leaderboard.json") or {}
    evaluated = {(row["run"], row["step"]) for row in leaderboard.get("rows", [])}
    damaged = [line.split()[:2] for line in leaderboard.get("damaged", [])]
    evaluated |= {(run, _step(name)) for run, name in damaged if name.startswith("step-")}  # others are means
    newest = {folder.name: max(folder.glob("checkpoints/step-*"), default=None) for folder in folders}
    return all(path is None or (run, _step(path.name)) in evaluated for run, path in newest.items())


def _step(name: str) -> int:
    """`step-00000100` -> 100."""
    return int(name.removeprefix("step-"))


def parse_requirement(text: str) -> tuple[str, float]:
    """`accuracy=0.75` -> ("accuracy", 0.75). Raises UserError."""
    metric, _, value = text.partition("=")
    try:
        return metric.strip(), float(value)
    except ValueError:
        raise UserError(f"--require {text}: expected a metric and a number, such as accuracy=0.75") from None


def missed_requirements(leaderboard: dict[str, Any], required: Sequence[tuple[str, float]]) -> list[str]:
    """Returns one line for each requirement that the winner's scores miss, on test and on general tasks. A loss or an error must not
    exceed its bound."""
    general = leaderboard.get("against_base") or {}
    scores = {
        **((leaderboard.get("winner") or {}).get("test") or {}),
        **(general.get("scores", {}).get("winner") or {}),
    }
    kinds = [kind for settings in TASKS.values() for kind in settings.kinds]
    builtin = {name: direction for kind in kinds for name, direction in kind.metrics.items()}
    tested = {row["score"]: row["direction"] for row in general.get("rows", [])}
    directions = {**builtin, **leaderboard.get("directions", {}), **tested}
    lines = []
    for metric, bound in required:
        score = scores.get(metric)
        lower_is_better = directions.get(metric) == "min"
        if not isinstance(score, (int, float)):
            names = ", ".join(name for name, value in scores.items() if isinstance(value, (int, float)))
            lines.append(f"required {metric}: the winner has no such test score; it has: {names or 'none'}")
        elif (score > bound) if lower_is_better else not (score >= bound):
            sign = "<=" if lower_is_better else ">="
            split = "" if metric in tested else " on test"
            lines.append(f"required {metric} {sign} {bound:g}{split}, the winner has {score:.4f}")
    return lines


def read_leaderboard(folder: Path) -> dict[str, Any]:
    """Raises UserError when there is none."""
    leaderboard = read_json(folder / "leaderboard.json")
    if not isinstance(leaderboard, dict):
        raise UserError(f"{folder / 'leaderboard.json'}: the sweep wrote no leaderboard")
    return leaderboard


def _leaderboard_text(folder: Path) -> str:
    text = (folder / "leaderboard.md").read_text(encoding="utf-8")
    return f"{text}\nLeaderboard: {folder / 'leaderboard.md'} and .json"
