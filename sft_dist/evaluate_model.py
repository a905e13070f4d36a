"""`python -m sft_dist.evaluate_model RECIPE --model MODEL`: scores of a model that is no checkpoint of a run, or on other data.

The recipe says how rows are read and scored; the model may be an export, an adapter, or any folder or hub id that the task loads.
Nothing is chosen by these scores, and no run remembers them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist.export import ABOUT
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json
from sft_dist.recipe.load import read, validate
from sft_dist.recipe.model_files import folder_problems
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.trust import NO_TRUST, Trust, add_options, require_trust, trust_in

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Candidate:
    """A model to score: the recipe that loads it, and what it needs besides."""

    recipe: Recipe
    adapter: Path | None = None  # weights beside the base
    labels: tuple[str, ...] = ()  # in the order of its outputs, where it says so


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.evaluate_model",
        description="Score any model under a recipe: on its validation split, or on other data with the same columns.",
        epilog="example: python -m sft_dist.evaluate_model my.yaml --model runs/my/0a1b2c3d4e/export --data new.csv",
    )
    parser.add_argument("recipe", help="a recipe file without a matrix")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--model", required=True, help="an exported folder, an adapter, a folder or a hub id")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        help="source of the rows to score, all of them; repeatable (the recipe's validation split)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.umask(0o077)
    try:
        source = read(options.recipe, options.overrides)
        if source.data.get("matrix"):
            raise UserError(
                f"{options.recipe}: has a matrix, so it stands for several recipes; choose one by KEY=VALUE"
            )
        recipe = validate(source)
        trust = trust_in(options)
        sources = list(dict.fromkeys(options.data)) or [None]
        candidates = [candidate_of(recipe, options.model, source, trust) for source in sources]
        # An adapter brings its base, for which the recipe does not speak.
        own = candidates[0].recipe.model == recipe.model
        require_trust(candidates[0].recipe, trust | Trust.in_recipes([recipe] if own else []), Path(options.model))
        scores = score(candidates, "test" if options.data else "validation")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    tables = dict(zip(map(str, sources), scores, strict=True))
    content = tables if len(tables) > 1 else scores[0]
    print(json.dumps(content, indent=2, ensure_ascii=False) if options.json else _text(tables))
    return 0


def candidate_of(recipe: Recipe, model: str, data: str | None = None, trust: Trust = NO_TRUST) -> Candidate:
    """Returns the model, with `data` as the test split. What the recipe allows its own model, it does not allow others. Raises
    UserError for a folder that cannot be loaded."""
    settings = json.loads(recipe.model_dump_json())
    if data is not None:
        source = settings["data"]["source"]
        settings["data"]["source"] = {
            **(source if isinstance(source, dict) else {"train": source}),
            "test": _located(data),
        }
        settings["data"]["split"]["test"] = None
    folder = Path(model)
    about = read_json(folder / ABOUT)
    if about and (problems := folder_problems(folder)):
        raise UserError(problems)
    labels = tuple(about["labels"]) if about else ()
    if (folder / ADAPTER_CONFIG).is_file():
        base = about["recipe"] if about else settings
        settings |= {"model": base["model"], "tuning": base["tuning"]}
        return Candidate(Recipe.model_validate(settings), folder, labels)
    commit = next(iter(trust.commits), None)
    own = {"path": _located(model), "revision": None, "tokenizer": None, "trust_remote_code": commit}
    settings |= {"model": {**settings["model"], **own, "allow_pickle": trust.pickle}, "tuning": {"method": "full"}}
    return Candidate(Recipe.model_validate(settings), None, labels)


def score(candidates: Sequence[Candidate], split: str) -> list[dict[str, Any]]:
    """Returns the scores of one model on the data of each candidate, and on the recipe's general tasks. Raises UserError when its
    classes are not those of the data."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.evaluation.evaluator import Evaluator
    from sft_dist.evaluation.general_sets import require_lm_eval, scores_of_model
    from sft_dist.logging_setup import quiet_libraries

    quiet_libraries()
    require_lm_eval(candidates[0].recipe)
    evaluator = Evaluator()
    scores = [
        evaluator.score_model(candidate.recipe, candidate.adapter, split, candidate.labels) for candidate in candidates
    ]
    general = scores_of_model(candidates[0].recipe, *evaluator.scored_model())
    return [{**table, **general} for table in scores]


def _located(text: str) -> str:
    """A path from here, which is not where the recipe is; other sources and hub ids are as they are."""
    return str(Path(text).resolve()) if Path(text).exists() else text


def _text(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """A score a line, or a line for each of several data sets."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.evaluation.leaderboard import format_score, markdown_table

    rows = [
        {name: format_score(value) for name, value in scores.items() if not isinstance(value, (list, dict))}
        for scores in tables.values()
    ]
    if len(rows) == 1:
        return "\n".join(f"{name:<24}{score}" for name, score in rows[0].items())
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[source, *(row.get(name, "") for name in names)] for source, row in zip(tables, rows, strict=True)]
    return "\n".join(markdown_table([["data", *names], *cells]))


if __name__ == "__main__":
    sys.exit(main())
