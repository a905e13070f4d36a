"""`sft-dist search best`: the best trial, and a plain recipe of it that every verb takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from launch.expand import applied, value_of
from launch.search.definition import Definition, read_definition
from launch.search.status import read_study
from launch.search.trial import Trial, better_first
from sft_dist.recipe.errors import UserError
from sft_dist.run.varying import describe_settings


def show_best(recipe: str, overrides: Sequence[str], root: Path, file: Path | None) -> str:
    """Returns a line about the best trial; writes its recipe to a new file. Raises UserError."""
    definition = read_definition(recipe, overrides, root)
    trials = read_study(definition).trials()
    ranking = better_first(trials, definition.objective.maximize)
    if not ranking:
        raise UserError("no trial has finished yet; see `sft-dist search status`")
    text = f"trial {ranking[0].number} of {len(trials)}: {definition.objective.metric} {ranking[0].value:.4f}"
    if file is not None:
        _write(file, best_recipe(definition, ranking[0], text))
    written = f"; wrote {file}, next: sft-dist eval {file}" if file else ""
    return f"{text}, {describe_settings(ranking[0].point)} (run {ranking[0].run}){written}"


def best_recipe(definition: Definition, trial: Trial, text: str) -> str:
    """Returns the recipe of a trial, with the name of the searched recipe: its run is the trial's run."""
    data: dict[str, Any] = {key: value for key, value in definition.source.data.items() if key != "search"}
    paths = sorted(trial.point, key=lambda path: path.count("."))
    values = [value_of(path, trial.point[path]) for path in paths]
    body: str = yaml.safe_dump(applied(data, values), sort_keys=False, allow_unicode=True)
    return f"# The best of a search, {text}\n# from {definition.source.file.name}: {describe_settings(trial.point)}\n{body}"


def _write(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"{file} exists already") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
