"""Facts of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) that need none of its code: which tasks are
files of the user, and whether it has tasks of these names. Importing it takes seconds, and torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sft_dist.recipe.errors import Problem
from sft_dist.recipe.suggest import similar_to

if TYPE_CHECKING:
    from sft_dist.recipe.schema import LmEval, Recipe

PACKAGE = "lm_eval"
_TASK_SUFFIXES = (".yaml", ".yml")


def is_task_file(text: str) -> bool:
    """Whether an entry of `evaluate.lm_eval.tasks` is a file; others are names."""
    return text.endswith(_TASK_SUFFIXES)


def task_files(settings: LmEval) -> list[str]:
    """Returns the files and the folder of tasks that did not come with lm-eval."""
    files = [task for task in settings.tasks if is_task_file(task)]
    return [*files, *([settings.include_path] if settings.include_path else [])]


def unknown_tasks(recipe: Recipe) -> list[Problem]:
    """Returns the names among the recipe's tasks that neither its folder of tasks nor the installed lm-eval has: a run would be
    trained before evaluation finds out."""
    settings = recipe.evaluate.lm_eval
    package = _package_folder()
    if settings is None or package is None:
        return []
    folders = (*([settings.include_path] if settings.include_path else []), str(package / "tasks"))
    return [
        Problem(
            "lm-eval has no task, group or tag of this name",
            f"evaluate.lm_eval.tasks.{index}",
            value=name,
            hint=similar_to(name, _likely_names(folders)),
        )
        for index, name in enumerate(settings.tasks)
        if not is_task_file(name) and not _is_named(name, folders)
    ]


def _package_folder() -> Path | None:
    spec = find_spec(PACKAGE)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


@cache
def _is_named(name: str, folders: tuple[str, ...]) -> bool:
    """Whether a YAML file names this task, group or tag, alone or in a list. Those whose path shares its first word are likeliest."""
    word = re.split(r"[_-]", name)[0]
    literal = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
    pattern = re.compile(
        rf"^[ \t]*(?:-[ \t]+)?(?:task|group|tag)[ \t]*:.*{literal}|^[ \t]*-[ \t]+[\"']?{literal}[\"']?[ \t]*(?:#.*)?$".encode(),
        re.MULTILINE,
    )
    files = sorted(_task_files_below(folders), key=lambda file: word not in str(file))
    encoded = name.encode()
    return any(encoded in content and pattern.search(content) for content in map(_content, files))


@cache
def _likely_names(folders: tuple[str, ...]) -> list[str]:
    """Names of files and of their folders, which are mostly those of tasks and groups."""
    return sorted({name for file in _task_files_below(folders) for name in (file.stem, file.parent.name)})


def _task_files_below(folders: tuple[str, ...]) -> Iterator[Path]:
    return (file for folder in folders for file in Path(folder).rglob("*.yaml"))


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
