"""Seals a run: a folder with everything that decides what happens, which also works without this tool.

    bash runs/<name>/<id>/run.sh

The recipe and the source are written once and never again: a resumed run goes on with what it started with.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import sft_dist
from launch.plan import Plan
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_text
from sft_dist.recipe.schema import NAME_PATTERN, Recipe
from sft_dist.run.folder import RunFolder

MOST_SOURCE_BYTES = 20 * 2**20

_JSON = json.JSONEncoder(ensure_ascii=False)  # json.dumps would make one for each value
_ID = re.compile(r"([0-9a-f]{10})(?:-([1-9][0-9]{0,5}))?")


def seal(plan: Plan, recipe: Recipe, job: str = "") -> RunFolder:
    """Make the folder, or bring `plan.json` and the script of an existing one up to date: `job.sbatch` with the text
    `job`, or `run.sh` when the plan is for this machine. Safe to repeat."""
    return _seal(plan, recipe, job, None, durable=True)


def seal_all(sealed: Sequence[tuple[Plan, Recipe, str]]) -> list[RunFolder]:
    """`seal` for many runs of one recipe at once: a thousand in a second or two.

    They share one copy of the source, beside them in `.source-<digest>`.
    """
    if len(sealed) == 1:
        return [seal(*sealed[0])]
    shared = _shared_source(sealed[0][0].folder.parent)
    # Not made sure of on the disk, file by file: that takes 3 ms each, and network file systems do it at every close.
    return [_seal(plan, recipe, job, shared, durable=False) for plan, recipe, job in sealed]


def _seal(plan: Plan, recipe: Recipe, job: str, shared: Path | None, durable: bool) -> RunFolder:
    folder = RunFolder(plan.folder)
    _check_names(folder)
    os.umask(0o077)  # this process and the ranks it starts write for their owner alone
    folder.create(recipe, durable)
    if shared is None:
        _snapshot(folder.source)
    elif not folder.source.exists():
        folder.source.symlink_to(f"../{shared.name}")
    write_text(folder.plan_file, _key_by_key(plan.to_json()), durable)
    if job:
        write_text(folder.job_script, job, durable)
    else:
        write_text(folder.script, script(plan), durable)
        folder.script.chmod(0o700)
    return folder


def _key_by_key(data: Mapping[str, object]) -> str:
    """JSON with one key a line: as readable as an indented one, and four times as fast to write."""
    lines = [f'  "{key}": {_JSON.encode(value)}' for key, value in data.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


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
            f'exec "$PYTHON" {wrapped(words)}',
            "",
        ]
    )


def _in_double_quotes(text: str) -> str:
    return re.sub(r'([\\"$`}])', r"\\\1", text)


def wrapped(words: list[str], indent: str = "  ") -> str:
    """Each flag with its value on a line of its own."""
    lines: list[str] = []
    for word in words:
        if word.startswith("-") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return f" \\\n{indent}".join(lines)


def _check_names(folder: RunFolder) -> None:
    """The last look before a name becomes a path; the schema has checked the recipe's name already."""
    name = folder.path.parent.name
    if not re.fullmatch(NAME_PATTERN.strip("^$"), name) or not _ID.fullmatch(folder.path.name):
        raise UserError(f"not a run folder's name: {name}/{folder.path.name}")
    if folder.path.is_symlink() or folder.path.parent.is_symlink():
        raise UserError(f"a link stands where the run folder should be: {folder.path}")


def _snapshot(source: Path) -> None:
    """Copy the package's own modules as they are now, aside first, so that a copy is whole or absent."""
    target = source / "sft_dist"
    if target.exists():
        return
    aside = source / f".sft_dist-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    package = Path(sft_dist.__file__).parent
    for inside in _modules(package):
        copy = aside / inside
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(package / inside, copy)
    aside.rename(target)


def _shared_source(parent: Path) -> Path:
    """One copy for many runs, named by its content, so that runs of another day keep what they were sealed with."""
    package = Path(sft_dist.__file__).parent
    digest = hashlib.sha256()
    for file in _modules(package):
        content = (package / file).read_bytes()
        digest.update(f"{file}\0{len(content)}\0".encode() + content)
    shared = parent / f".source-{digest.hexdigest()[:12]}"
    for folder in (parent, shared):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _snapshot(shared)
    return shared


def _modules(package: Path) -> list[Path]:
    """Raises UserError when they are too large to be copied."""
    files = [file.relative_to(package) for file in sorted(package.rglob("*.py")) if "__pycache__" not in file.parts]
    files = [file for file in files if file.parts[0] != "_shipped"]
    sizes = {file: (package / file).stat().st_size for file in files}
    if sum(sizes.values()) > MOST_SOURCE_BYTES:
        raise UserError(
            f"{package}: {sum(sizes.values()) / 2**20:.0f} MiB of source would be copied, at most "
            f"{MOST_SOURCE_BYTES // 2**20} MiB are; the largest file is {max(sizes, key=lambda file: sizes[file])}"
        )
    return files
