"""`python -m sft_dist.export RUN`: a checkpoint as a plain Hugging Face folder with a model card."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_dist.recipe.entry_points import TASKS_GROUP, plugin_of
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json, write_json, write_text
from sft_dist.recipe.masking import masked_values
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks import TASKS
from sft_dist.recipe.trust import add_options, require_trust, trust_in
from sft_dist.recipe.tunings import best_form, export_form, has_adapter, merge_refusal
from sft_dist.run.candidates import candidate_name, members_in
from sft_dist.run.folder import RunFolder

if TYPE_CHECKING:
    from sft_dist.checkpoints.store import Checkpoint
    from sft_dist.tasks.base import Task

log = logging.getLogger("sft_dist")
ABOUT = "sft_dist.json"  # what `predict` needs besides weights: the recipe and the class names


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.export",
        description="Write a checkpoint as a Hugging Face folder.",
        epilog="example: python -m sft_dist.export runs/quickstart/0a1b2c3d4e --to my-model",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--step", type=int, help="step of the checkpoint (the sweep's winner, else the best in training)"
    )
    parser.add_argument("--to", type=Path, help="folder to write (RUN/export)")
    parser.add_argument(
        "--form",
        choices=["merged", "adapter"],
        help="merged: adapters merged into the base model; adapter: separate (the recipe's)",
    )
    parser.add_argument(
        "--temperature", action="store_true", help="with the temperature that is fitted on validation (the recipe's)"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.umask(0o077)
    folder = RunFolder(options.run.resolve())
    try:
        if not folder.recipe_file.is_file():
            raise UserError(f"{options.run}: no recipe.json in it, so it is not a run folder")
        recipe = folder.recipe()
        require_trust(recipe, trust_in(options), folder.recipe_file)
        step, members = (options.step, ()) if options.step is not None else _best_candidate(folder)
        recipe_form = export_form(recipe)
        form = options.form or (best_form(recipe.tuning) if recipe_form == "none" else recipe_form)
        candidate = folder.candidate(step, members).name
        scores = {split: _scores(folder, candidate, split) for split in ("validation", "train", "test")}
        validation = scores.pop("validation")
        final = {split: values for split, values in scores.items() if values}
        temperature = (
            _temperature(folder, recipe, step, members) if options.temperature or recipe.evaluate.temperature else None
        )
        print(export(folder, step, options.to or folder.export, form, validation or {}, final, temperature, members))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def export(
    folder: RunFolder,
    step: int,
    to: Path,
    form: str,  # merged | adapter
    validation: dict[str, Any],
    final: dict[str, dict[str, Any]],
    temperature: float | None = None,  # by which `predict` divides logits
    members: Sequence[int] = (),  # steps, where it is the mean of several checkpoints
) -> Path:
    """Writes checkpoint `step`, or a mean, to `to`, aside first. Raises UserError when the checkpoint is missing or damaged, and where the
    merged model is not the trained one."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.checkpoints import store as ckpt
    from sft_dist.logging_setup import quiet_libraries
    from sft_dist.tasks import task_of

    quiet_libraries()
    recipe = folder.recipe()
    checkpoint = _candidate(folder, step, members)
    if problems := ckpt.verify(checkpoint):
        raise UserError(f"{checkpoint.path} is damaged: {'; '.join(problems)}")
    if form == "adapter" and not has_adapter(recipe.tuning):
        raise UserError(f"tuning: {recipe.tuning.method} has no adapter; use the merged form")
    if form == "merged" and (reason := merge_refusal(recipe.tuning)):
        raise UserError(f"tuning: {recipe.tuning.method} cannot be merged: {reason}; use the adapter form")
    to = to.resolve()
    if to.exists() and not (to / ABOUT).exists() and not (to.is_dir() and not any(to.iterdir())):
        raise UserError(f"{to} exists and is no exported model; choose another folder with --to")

    task = task_of(recipe)
    task.labels = checkpoint.trainer_state()["labels"]
    staging_dir = to.with_name(f".{to.name}.{os.getpid()}")
    shutil.rmtree(staging_dir, ignore_errors=True)
    try:
        if form == "adapter" or not has_adapter(recipe.tuning):
            shutil.copytree(checkpoint.model, staging_dir)
        else:
            _write_merged(checkpoint, task, staging_dir)
        task.complete_export(staging_dir)
        _describe(staging_dir, folder, step, form, task, validation, final, temperature, members)
        if to.exists():
            shutil.rmtree(to)
        os.replace(staging_dir, to)
    finally:
        shutil.rmtree(staging_dir, ignore_errors=True)
    log.info("exported %s to %s", candidate_name(step, members), to)
    return to


def _candidate(folder: RunFolder, step: int, members: Sequence[int]) -> Checkpoint:
    """Returns a checkpoint, or a mean, which is made if it is not there. Raises UserError where a checkpoint is missing."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.checkpoints import store as ckpt
    from sft_dist.checkpoints.averaging import make_mean

    for member in members or (step,):
        if not folder.checkpoint(member).is_dir():
            have = ", ".join(str(saved.step) for saved in ckpt.published(folder)) or "none"
            raise UserError(f"{folder.path} has no checkpoint of step {member}; it has: {have}")
    return make_mean(folder, members) if members else ckpt.Checkpoint(folder.checkpoint(step), step)


def _write_merged(checkpoint: Checkpoint, task: Task, to: Path) -> None:
    """Writes the base model with the adapters in its weights. Raises UserError where it then answers otherwise."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.evaluation.merging import TOLERANCE, activations, comparison_inputs, difference
    from sft_dist.tasks.models import build_model, load_processor
    from sft_dist.tuning import load_weights, require_mergeable

    processor = load_processor(task.recipe, task)
    model = build_model(task.recipe, task, processor)
    require_mergeable(model)
    load_weights(model, checkpoint.model)
    inputs = comparison_inputs(task, processor)
    apart = activations(model, task, inputs)
    model.merge_and_unload().save_pretrained(to)  # type: ignore[operator]
    processor.save_pretrained(to)
    del model
    merged = task.build_model(str(to), None, {}, processor)
    if difference_text := difference(apart, activations(merged, task, inputs)):
        message = f"the merged model is not the trained one, and was not published: {difference_text}; the tolerance is {TOLERANCE:g} of the output"
        hint = "export the adapter: evaluate.export: adapter, or sft-dist export RUN --form adapter; or train that layer whole, with tuning.modules_to_save"
        raise UserError(Problem(message, "evaluate.export", value="merged", hint=hint))


def _describe(
    staging_dir: Path,
    folder: RunFolder,
    step: int,
    form: str,
    task: Task,
    validation: dict[str, Any],
    final: dict[str, dict[str, Any]],
    temperature: float | None,
    members: Sequence[int],
) -> None:
    """Writes what `predict` needs besides weights, and the model card."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.evaluation.model_card import model_card

    recipe = task.recipe
    settings = masked_values(json.loads(recipe.model_dump_json()))  # an export is published
    about = {"recipe": settings, "labels": task.labels, "step": step, "form": form}
    if temperature is not None:
        about["temperature"] = temperature
    if members:
        about["members"] = [*members]
    if recipe.task.type not in TASKS:
        about["plugins"] = [plugin_of(TASKS_GROUP, recipe.task.type).to_json()]
    write_json(staging_dir / ABOUT, about)
    public_recipe = Recipe.model_validate(settings)
    card = model_card(public_recipe, folder, step, form, task, validation, final, temperature, members)
    write_text(staging_dir / "README.md", card)


def _temperature(folder: RunFolder, recipe: Recipe, step: int, members: Sequence[int]) -> float:
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.evaluation.comparison import AnswersReader
    from sft_dist.evaluation.evaluator import Evaluator
    from sft_dist.evaluation.leaderboard import Scored
    from sft_dist.evaluation.temperature import fitted_temperature

    entry = Scored(folder, step, _candidate(folder, step, members).fingerprint(), {}, tuple(members))
    return fitted_temperature(AnswersReader(Evaluator().prepared), entry, recipe)


def _best_candidate(folder: RunFolder) -> tuple[int, tuple[int, ...]]:
    """Step and, of a mean, members: the sweep's winner when it belongs to this run, else the best validated in training, else the newest."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.checkpoints import store as ckpt

    for board in (folder.path / "leaderboard.json", folder.path.parent / "leaderboard.json"):
        winner = (read_json(board) or {}).get("winner", {})
        if winner.get("folder") == str(folder.path):
            return int(winner["step"]), members_in(winner)
    newest, damaged = ckpt.newest_good(folder)
    if newest is None:
        raise UserError(f"{folder.path} has no checkpoint yet" + "".join(f"\n    {line}" for line in damaged))
    best = newest.trainer_state()["progress"]["best_step"]
    return (best if best in {saved.step for saved in ckpt.published(folder)} else newest.step), ()


def _scores(folder: RunFolder, candidate: str, split: str) -> dict[str, Any] | None:
    return (read_json(folder.evaluation / f"{candidate}.{split}.json") or {}).get("scores")


if __name__ == "__main__":
    sys.exit(main())
