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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sft_dist
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json, read_object, write_text
from sft_dist.recipe.text import join_names
from sft_dist.run.folder import RunFolder
from sft_dist.run.manifest import TRAINING, require_unchanged, write_manifest
from sft_dist.run.varying import describe_settings, settings_in, varying_between, varying_settings

if TYPE_CHECKING:
    from launch.expand import Run
    from launch.plan import Plan
    from sft_dist.recipe.schema import Recipe
    from sft_dist.recipe.source import Source

MAX_SOURCE_BYTES = 20 * 2**20
MAX_OLD_RUNS = 5  # runs of other settings that an error names

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
    """Returns the one run that `find_runs` finds. Raises UserError when there are several."""
    folders = find_runs(text, root)
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise UserError(f"{text}: it has no run in {root}")
    raise UserError(f"{text!r} matches several runs: {join_names(_describe_runs(folders))}")


def find_runs(text: str, root: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Returns the run folders that a text stands for: a recipe, a folder of runs, a run folder, a recipe's name, a run's id or the
    beginning of its id. Raises UserError when no run is meant, and when a recipe's runs are all of other settings."""
    if text and Path(text).is_dir():
        return [path.resolve() for path in all_run_folders(Path(text))]
    if is_recipe(text):
        folders = recipe_folders(text, root, overrides)
        if not folders:
            _refuse_other_settings(text, root, overrides)
        return folders
    folders = all_run_folders(root)
    exact = [path for path in folders if text in (path.name, f"{path.parent.name}/{path.name}")]
    beginning = [path for path in folders if path.name.startswith(text) and text]
    named = [path for path in folders if path.parent.name == text]
    matches = exact or named or beginning
    if not matches:
        runs = f"the runs are {join_names(_describe_runs(folders))}" if folders else f"there are no runs in {root}"
        raise UserError(f"no run {text!r}: neither a recipe, nor a run folder, nor the beginning of a run's id; {runs}")
    return [path.resolve() for path in matches]


def is_recipe(text: str) -> bool:
    return text.endswith((".yaml", ".yml")) or Path(text).is_file()


def find_sealed(text: str, root: Path, overrides: Sequence[str]) -> Path | None:
    """Returns the run that a text names by its folder or its id; None where it stands for a recipe. Raises UserError, also for
    overrides of a run."""
    if not is_one_run(text):
        return None
    if overrides:
        raise UserError(f"{text} is sealed; KEY=VALUE works with a recipe file only, and makes another run")
    return find_run(text, root)


def is_one_run(text: str) -> bool:
    """Whether a text names a single run by its folder or its id, not all runs of a recipe."""
    if Path(text).is_dir():
        return (Path(text) / "recipe.json").is_file()
    return not is_recipe(text) and re.fullmatch(r"(.+/)?[0-9a-f]{1,10}(-[0-9]+)?", text) is not None


def _describe_runs(folders: Sequence[Path]) -> Iterator[str]:
    """`my/0a1b2c3d4e (lr=1e-4 seed=2)`"""
    for path, settings in varying_between(folders).items():
        text = describe_settings(settings)
        yield f"{path.parent.name}/{path.name}{f' ({text})' if text else ''}"


def recipe_folders(target: str, root: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Returns the existing run folders of a recipe as it is now, of each run the newest. Raises UserError."""
    from launch.expand import expand  # reads YAML; finding a run by its id does not
    from sft_dist.recipe.load import read

    source = read(target, overrides)
    parent = root / source.data["name"]
    run_ids = _trials_of(source, parent) or [run.id for run in expand(source)]
    numbers = folder_numbers(parent)
    folders = [parent / folder_name(run_id, numbers) for run_id in run_ids]
    return [folder for folder in folders if folder.is_dir()]


def _trials_of(source: Source, parent: Path) -> list[str]:
    """Returns the runs of a recipe's search, once it has begun."""
    if not source.data.get("search"):
        return []
    from launch.search.folder import SUMMARY, search_folder  # few recipes have a search

    trials = read_object(search_folder(source, parent) / SUMMARY).get("trials", [])
    return [trial["run"] for trial in trials if trial["run"] and trial["state"] != "repeated"]


def _runs_of(target: str, root: Path, overrides: Sequence[str]) -> tuple[Path, list[Run]]:
    from launch.expand import expand  # reads YAML; finding a run by its id does not
    from sft_dist.recipe.load import read

    runs = expand(read(target, overrides))
    return root / runs[0].recipe.name, runs


def _refuse_other_settings(target: str, root: Path, overrides: Sequence[str]) -> None:
    """Raises UserError where all runs of a recipe are of other settings, such as those before an edit, and names them."""
    parent, runs = _runs_of(target, root, overrides)
    old_folders = all_run_folders(parent) if parent.is_dir() else []
    if not old_folders:
        return
    settings = settings_in(runs[0].recipe.model_dump(mode="json"))
    lines = []
    for path in old_folders[-MAX_OLD_RUNS:]:
        recipe = read_json(RunFolder(path).recipe_file)
        theirs = settings_in(recipe) if isinstance(recipe, dict) else {}
        pairs = {"run": theirs, "recipe": settings}
        of_run, of_recipe = (varying_settings(pairs)[key] for key in pairs)
        lines.append(
            f"{path.parent.name}/{path.name} has {describe_settings(of_run)}, the recipe {describe_settings(of_recipe)}"
        )
    message = f"{target}: no run with these settings in {root}, but {len(old_folders)} with other settings: {'; '.join(lines)}"
    raise UserError(
        Problem(message, hint=f"name the old runs by their folder, {relative_path(parent)}, or by their ids")
    )


def relative_path(path: Path) -> Path:
    """Returns a path relative to the current folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def folder_numbers(parent: Path) -> dict[str, int]:
    """Returns run id -> number of its newest folder: `<id>` is 1, `<id>-2` the first fresh start."""
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
    """Returns JSON with one key a line: as readable as an indented one, and four times as fast to write."""
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
        raise UserError(f"the run folder must not be a symbolic link: {folder.path}")


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


def copy_sealed_source(original: RunFolder, target: RunFolder) -> None:
    """Gives a new folder beside a run the source of that run. A run without a copy of its source gives none. Raises UserError when
    the folder exists: another process has made it since it was chosen."""
    if not original.source.is_dir():
        return
    try:
        target.path.mkdir(mode=0o700)
    except FileExistsError:
        raise UserError(f"{target.path} was made by another process at this moment; run the command again") from None
    if original.source.is_symlink():  # runs of one matrix share it
        target.source.symlink_to(os.readlink(original.source))
    else:
        shutil.copytree(original.source, target.source, ignore=shutil.ignore_patterns("__pycache__"))


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
