"""Finds run folders, and creates them: a folder with everything that decides what happens, which also works without this tool.

    bash runs/<name>/<id>/run.sh

The recipe and the source are written once and never again: a resumed run continues with what it started with, and one whose files
were edited is refused (`sft_dist.run.manifest`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sft_dist
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_text
from sft_dist.recipe.text import join_names
from sft_dist.run.folder import RunFolder
from sft_dist.run.manifest import TRAINING, require_unchanged, write_manifest

if TYPE_CHECKING:
    from launch.plan import Plan
    from sft_dist.recipe.schema import Recipe

MAX_SOURCE_BYTES = 20 * 2**20

_JSON = json.JSONEncoder(ensure_ascii=False)  # json.dumps would make one for each value
_ID = re.compile(r"([0-9a-f]{10})(?:-([1-9][0-9]{0,5}))?")


# ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def runs_root(option: str | None) -> Path:
    """Returns where run folders are: --runs, else $SFT_DIST_RUNS, else ./runs."""
    return Path(option or os.environ.get("SFT_DIST_RUNS") or "runs").expanduser().resolve()


def all_run_folders(root: Path) -> list[Path]:
    """Returns every run folder under a runs root, or under one recipe's folder in it."""
    if (root / "recipe.json").is_file():
        return [root]
    files = [*root.glob("*/recipe.json"), *root.glob("*/*/recipe.json")]
    return sorted((file.parent for file in files), key=lambda path: (path.parent.name, _natural_key(path.name)))


def find_run(text: str, root: Path) -> Path:
    """Returns a run by its folder, its id, or the beginning of its id if only one run has it. Raises UserError."""
    if (Path(text) / "recipe.json").is_file():
        return Path(text).resolve()
    folders = all_run_folders(root)
    exact = [path for path in folders if text in (path.name, f"{path.parent.name}/{path.name}")]
    matches = exact or [path for path in folders if path.name.startswith(text) and text]
    if len(matches) == 1:
        return matches[0].resolve()
    if not matches:
        names = join_names(path.name for path in folders)
        runs = f"the runs are {names}" if folders else f"there are no runs in {root}"
        raise UserError(f"no run {text!r}: neither a run folder nor the beginning of a run's id; {runs}")
    raise UserError(f"{text!r} fits several runs: {join_names(f'{path.parent.name}/{path.name}' for path in matches)}")


def recipe_folders(target: str, root: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Returns the existing run folders that a recipe or a folder stands for, of each run the newest. Raises UserError."""
    if Path(target).is_dir():
        return [path.resolve() for path in all_run_folders(Path(target))]
    from launch.expand import expand  # reads YAML; finding a run by its id does not
    from sft_dist.recipe.load import read

    runs = expand(read(target, overrides))
    parent = root / runs[0].recipe.name
    numbers = folder_numbers(parent)
    folders = [parent / folder_name(run.id, numbers) for run in runs]
    return [folder for folder in folders if folder.is_dir()]


def folder_numbers(parent: Path) -> dict[str, int]:
    """Run id -> number of its newest folder: `<id>` is 1, `<id>-2` the first fresh start."""
    numbers: dict[str, int] = {}
    for name in os.listdir(parent) if parent.is_dir() else ():
        if match := _ID.fullmatch(name):
            numbers[match[1]] = max(numbers.get(match[1], 0), int(match[2] or 1))
    return numbers


def folder_name(run_id: str, numbers: Mapping[str, int], fresh: bool = False) -> str:
    """Returns the name of a run's newest folder; with `fresh`, the next free one."""
    number = numbers.get(run_id, 0) + fresh
    return run_id if number <= 1 else f"{run_id}-{number}"


def _natural_key(name: str) -> list[object]:
    """Sorts `id-2` before `id-10`."""
    stem, _, number = name.partition("-")
    return [stem, int(number) if re.fullmatch(r"\d+", number) else 0]


# ── creating ────────────────────────────────────────────────────────────────────────────────────────────────────────
def create_run_folder(plan: Plan, recipe: Recipe, job: str = "") -> RunFolder:
    """Creates the folder, or brings `plan.json` and the script of an existing one up to date: `job.sbatch` with the text
    `job`, or `run.sh` when the plan is for this machine. Safe to repeat."""
    return _create(plan, recipe, job, None, durable=True)


def create_run_folders(runs: Sequence[tuple[Plan, Recipe, str]]) -> list[RunFolder]:
    """Creates the folders of many runs of one recipe at once: a thousand in a second or two.

    They share one copy of the source, beside them in `.source-<digest>`.
    """
    if len(runs) == 1:
        return [create_run_folder(*runs[0])]
    source = shared_source(runs[0][0].folder.parent)
    # Not flushed to the disk file by file: that takes 3 ms each, and network file systems do it at every close.
    return [_create(plan, recipe, job, source, durable=False) for plan, recipe, job in runs]


def _create(plan: Plan, recipe: Recipe, job: str, shared_source: Path | None, durable: bool) -> RunFolder:
    folder = RunFolder(plan.folder)
    _check_names(folder)
    os.umask(0o077)  # this process and the ranks it starts write for their owner alone
    require_unchanged(folder.path, TRAINING)
    folder.create(recipe, durable)
    if shared_source is None:
        _copy_source(folder.source)
    elif not folder.source.exists():
        folder.source.symlink_to(f"../{shared_source.name}")
    write_text(folder.plan_file, _plan_json(plan.to_json()), durable)
    if job:
        write_text(folder.job_script, job, durable)
    else:
        write_text(folder.script, run_script(plan), durable)
        folder.script.chmod(0o700)
    write_manifest(folder.path, durable)
    return folder


def _plan_json(data: Mapping[str, object]) -> str:
    """JSON with one key a line: as readable as an indented one, and four times as fast to write."""
    lines = [f'  "{key}": {_JSON.encode(value)}' for key, value in data.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def run_script(plan: Plan) -> str:
    """Renders `run.sh`: the plan's command, relocatable (it finds its own folder) and readable."""
    folder = str(plan.folder)
    program, *arguments = plan.argv
    exports = [f"export {key}={shlex.quote(value)}" for key, value in sorted(plan.env.items()) if key != "PYTHONPATH"]
    words = ['"$here"' if word == folder else shlex.quote(word) for word in arguments]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# Run {plan.name}/{plan.id}: trains, or resumes from the newest checkpoint. Needs no sft-dist command.",
            f"# {plan.nodes} node x {plan.processes_per_node} processes x {plan.batch.micro_batch} micro-batch"
            f" x {plan.batch.accumulation} accumulation = {plan.batch.global_batch} examples a step",
            "set -euo pipefail",
            'here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"',
            f'PYTHON="${{PYTHON:-{_in_double_quotes(program)}}}"',
            *exports,
            'export PYTHONPATH="$here/source${PYTHONPATH:+:$PYTHONPATH}"',
            'rm -f "$here/stop"',
            'cd "$here"',
            f'exec "$PYTHON" {wrap_arguments(words)}',
            "",
        ]
    )


def _in_double_quotes(text: str) -> str:
    return re.sub(r'([\\"$`}])', r"\\\1", text)


def wrap_arguments(words: Sequence[str], indent: str = "  ") -> str:
    """Puts each flag with its value on a line of its own."""
    lines: list[str] = []
    for word in words:
        if word.startswith("-") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return f" \\\n{indent}".join(lines)


def _check_names(folder: RunFolder) -> None:
    """Checks a name once more before it becomes a path; the schema has checked the recipe's name already."""
    from sft_dist.recipe.schema import NAME_PATTERN  # pydantic is slow to import, and finding runs does not need it

    name = folder.path.parent.name
    if not re.fullmatch(NAME_PATTERN.strip("^$"), name) or not _ID.fullmatch(folder.path.name):
        raise UserError(f"not a run folder's name: {name}/{folder.path.name}")
    if folder.path.is_symlink() or folder.path.parent.is_symlink():
        raise UserError(f"a symbolic link is in the place of the run folder: {folder.path}")


# ── the source ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _copy_source(source: Path) -> None:
    """Copies the package's own modules as they are now, under another name first, so that a copy is complete or absent."""
    target = source / "sft_dist"
    if target.exists():
        return
    staging = source / f".sft_dist-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    package = Path(sft_dist.__file__).parent
    for module in _modules(package):
        copy = staging / module
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(package / module, copy)
    staging.rename(target)


def is_sealed_before_packages(source: Path) -> bool:
    """Whether a run's source is of 0.1 before its modules moved into packages: `sft_dist.run` has other names there."""
    return (source / "sft_dist").is_dir() and not (source / "sft_dist" / "run").is_dir()


def shared_source(parent: Path) -> Path:
    """Returns one copy for many runs, named by its content, so that runs of another day keep the source they began with."""
    package = Path(sft_dist.__file__).parent
    digest = hashlib.sha256()
    for file in _modules(package):
        content = (package / file).read_bytes()
        digest.update(f"{file}\0{len(content)}\0".encode() + content)
    source = parent / f".source-{digest.hexdigest()[:12]}"
    for folder in (parent, source):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _copy_source(source)
    return source


def _modules(package: Path) -> list[Path]:
    """Raises UserError when they are too large to be copied."""
    files = [file.relative_to(package) for file in sorted(package.rglob("*.py")) if "__pycache__" not in file.parts]
    files = [file for file in files if file.parts[0] != "_shipped"]
    sizes = {file: (package / file).stat().st_size for file in files}
    if sum(sizes.values()) > MAX_SOURCE_BYTES:
        raise UserError(
            f"{package}: {sum(sizes.values()) / 2**20:.0f} MiB of source would be copied, at most "
            f"{MAX_SOURCE_BYTES // 2**20} MiB are allowed; the largest file is {max(sizes, key=lambda file: sizes[file])}"
        )
    return files
