"""What runs or unpickles files of a model needs the consent of the user: in the user's own recipe, or on the command line. The
recipe inside an exported model or a run folder came with the files, so it consents to nothing."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.lm_eval import task_files
from sft_dist.recipe.schema import Recipe


@dataclass(frozen=True)
class Trust:
    """What the user consents to. Nothing by default."""

    commits: frozenset[str] = frozenset()  # of the hub, whose code may run
    pickle: bool = False  # weights in a pickle may be read, with weights_only=True
    task_code: bool = False  # tasks of lm-eval may run code that did not come with lm-eval

    @classmethod
    def in_recipes(cls, recipes: Iterable[Recipe]) -> Trust:
        """Returns what recipes that the user wrote consent to."""
        written = list(recipes)
        models = [recipe.model for recipe in written]
        commits = frozenset(model.trust_remote_code for model in models if model.trust_remote_code)
        return cls(commits, any(model.allow_pickle for model in models), any(map(_allows_task_code, written)))

    def __or__(self, other: Trust) -> Trust:
        return Trust(self.commits | other.commits, self.pickle or other.pickle, self.task_code or other.task_code)

    def arguments(self) -> list[str]:
        """Returns the options that `add_options` reads."""
        commits = [word for commit in sorted(self.commits) for word in ("--trust-remote-code", commit)]
        pickle, task_code = ["--allow-pickle"] * self.pickle, ["--allow-task-code"] * self.task_code
        return [*commits, *pickle, *task_code]


NO_TRUST = Trust()


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code", metavar="COMMIT", action="append", default=[], help="lets the model's code of COMMIT run"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="reads weights in a pickle, with weights_only=True")
    parser.add_argument("--allow-task-code", action="store_true", help="lets the code of lm-eval tasks run")


def trust_in(options: argparse.Namespace) -> Trust:
    return Trust(frozenset(options.trust_remote_code), options.allow_pickle, options.allow_task_code)


def require_trust(recipe: Recipe, trust: Trust, file: Path) -> None:
    """Raises UserError where the recipe in `file`, which came with a model or a run, needs more than the user consents to."""
    commit = recipe.model.trust_remote_code
    problems = []
    if commit is not None and commit not in trust.commits:
        hint = f"read that code; to run it: --trust-remote-code {commit} (or give the recipe instead of the folder)"
        message = f"{file} allows itself to run code of {recipe.model.path}"
        problems.append(Problem(message, "model.trust_remote_code", value=commit, hint=hint))
    if recipe.model.allow_pickle and not trust.pickle:
        hint = "if you trust it: --allow-pickle (or give the recipe instead of the folder)"
        message = f"{file} allows itself to read pickles of {recipe.model.path}"
        problems.append(Problem(message, "model.allow_pickle", value="true", hint=hint))
    if problems:
        raise UserError(problems)


def require_task_trust(recipe: Recipe, trust: Trust, file: Path) -> None:
    """Raises UserError where the recipe in `file`, which came with a run, lets tasks of lm-eval run code without the user's consent.
    For programs that evaluate on such tasks. A forged recipe may name files of tasks without allowing itself their code."""
    settings = recipe.evaluate.lm_eval
    if settings is not None and (settings.allow_code or task_files(settings)) and not trust.task_code:
        message = f"{file} lets tasks of lm-eval run code"
        value = ", ".join(task_files(settings)) or "true"
        hint = "read their files; to run them: --allow-task-code (or give the recipe instead of the folder)"
        raise UserError(Problem(message, "evaluate.lm_eval.allow_code", value=value, hint=hint))


def _allows_task_code(recipe: Recipe) -> bool:
    return recipe.evaluate.lm_eval is not None and recipe.evaluate.lm_eval.allow_code
