"""Seals a run: a folder with everything that decides what happens, which also works without this tool.

    bash runs/<name>/<id>/run.sh

The recipe and the source are written once and never again: a resumed run goes on with what it started with.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import sft_dist
from launch.plan import Plan
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.run_folder import RunFolder, write_text
from sft_dist.recipe.schema import NAME_PATTERN, Recipe

_ID = re.compile(r"([0-9a-f]{10})(?:-([1-9][0-9]{0,5}))?")


def seal(plan: Plan, recipe: Recipe) -> RunFolder:
    """Make the folder, or bring `plan.json` and `run.sh` of an existing one up to date. Safe to repeat."""
    folder = RunFolder(plan.folder)
    _check_names(folder)
    os.umask(0o077)  # this process and the ranks it starts write for their owner alone
    folder.create(recipe)
    _snapshot(folder)
    write_text(folder.plan_file, json.dumps(plan.to_json(), ensure_ascii=False, indent=2) + "\n")
    write_text(folder.script, script(plan))
    folder.script.chmod(0o700)
    return folder


def newest(names: Iterable[str]) -> dict[str, int]:
    """Run id -> number of its newest capsule, from the names of all: `<id>` is 1, `<id>-2` the first fresh start."""
    numbers: dict[str, int] = {}
    for name in names:
        if match := _ID.fullmatch(name):
            numbers[match[1]] = max(numbers.get(match[1], 0), int(match[2] or 1))
    return numbers


def folder_name(run_id: str, numbers: Mapping[str, int], fresh: bool = False) -> str:
    """The name of a run's newest capsule; with `fresh`, the next one that is free."""
    number = numbers.get(run_id, 0) + fresh
    return run_id if number <= 1 else f"{run_id}-{number}"


def script(plan: Plan) -> str:
    """`run.sh`: the plan's command, relocatable (it finds its own folder) and readable."""
    folder = str(plan.folder)
    program, *arguments = plan.argv
    exports = [f"export {key}={shlex.quote(value)}" for key, value in sorted(plan.env.items()) if key != "PYTHONPATH"]
    words = ['"$here"' if word == folder else shlex.quote(word) for word in arguments]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# Run {plan.name}/{plan.id}: trains, or goes on after the newest checkpoint. Needs no sft-dist command.",
            f"# {plan.nodes} node x {plan.processes_per_node} processes x {plan.batch.micro_batch} micro-batch"
            f" x {plan.batch.accumulation} accumulation = {plan.batch.global_batch} examples a step",
            "set -euo pipefail",
            'here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"',
            f'PYTHON="${{PYTHON:-{_in_double_quotes(program)}}}"',
            *exports,
            'export PYTHONPATH="$here/source${PYTHONPATH:+:$PYTHONPATH}"',
            'rm -f "$here/stop"',
            'cd "$here"',
            f'exec "$PYTHON" {_wrapped(words)}',
            "",
        ]
    )


def _in_double_quotes(text: str) -> str:
    return re.sub(r'([\\"$`}])', r"\\\1", text)


def _wrapped(words: list[str]) -> str:
    """Each flag with its value on a line of its own."""
    lines: list[str] = []
    for word in words:
        if word.startswith("-") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n  ".join(lines)


def _check_names(folder: RunFolder) -> None:
    """The last look before a name becomes a path; the schema has checked the recipe's name already."""
    name = folder.path.parent.name
    if not re.fullmatch(NAME_PATTERN.strip("^$"), name) or not _ID.fullmatch(folder.path.name):
        raise UserError(f"not a run folder's name: {name}/{folder.path.name}")
    if folder.path.is_symlink() or folder.path.parent.is_symlink():
        raise UserError(f"a link stands where the run folder should be: {folder.path}")


def _snapshot(folder: RunFolder) -> None:
    """Copy the package's own modules, aside first, so that a copy is whole or absent."""
    target = folder.source / "sft_dist"
    if target.exists():
        return
    aside = folder.source / ".sft_dist"
    shutil.rmtree(aside, ignore_errors=True)
    package = Path(sft_dist.__file__).parent
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        if inside.parts[0] == "_shipped" or "__pycache__" in inside.parts:
            continue
        copy = aside / inside
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    aside.rename(target)
