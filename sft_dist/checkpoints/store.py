"""Checkpoints: write aside, publish with one rename, verify before use, find the newest good one.

A checkpoint exists when its manifest does. Everything is written into a hidden folder beside, flushed to disk, listed
with its SHA-256 in `manifest.json`, and renamed into place; a kill at any moment leaves either the whole checkpoint or
none. Nothing in it is a pickle:

    checkpoints/step-00000100/
      manifest.json           every file's size and SHA-256, the step, the run
      model/                  a plain Hugging Face folder (safetensors, or a PEFT adapter)
      state/                  optimizer state, a file a rank (`state.py`)
      trainer.json            schedule, scores so far, early-stopping count
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist.recipe.files import digest_of, read_json, write_json
from sft_dist.run.folder import RunFolder

MANIFEST = "manifest.json"
FORMAT = 2
EVERY_FILE = ("",)  # prefixes of names
FILES_OF_EVALUATION = ("model/", "trainer.json")
_WRITING = ".writing-"
_DELETING = f"{_WRITING}deleted-"


@dataclass(frozen=True)
class Checkpoint:
    """A published step, or the mean of several (`averaging`), whose step is its newest."""

    path: Path
    step: int

    @property
    def run_folder(self) -> RunFolder:
        return RunFolder(self.path.parent.parent)

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def trainer_file(self) -> Path:
        return self.path / "trainer.json"

    def trainer_state(self) -> dict[str, Any]:
        return json.loads(self.trainer_file.read_text())

    def fingerprint(self) -> str:
        """The SHA-256 of the manifest, which names the content of every file in it."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()


def staging_dir_of(folder: RunFolder, step: int, attempt: int) -> Path:
    """Returns where the checkpoint of `step` is written before it is published. Every attempt has its own: a rank of the previous
    one may still be writing, on a machine that is believed dead."""
    return folder.checkpoints / f"{_WRITING}{attempt:03d}-{folder.checkpoint(step).name}"


def begin(folder: RunFolder, step: int, attempt: int) -> Path:
    """Makes an empty hidden folder for the files of `step`."""
    staging_dir = staging_dir_of(folder, step, attempt)
    shutil.rmtree(staging_dir, ignore_errors=True)
    staging_dir.mkdir(mode=0o700, parents=True)
    return staging_dir


def describe(staging_dir: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Returns the files' part of the manifest; they are on disk when this returns."""
    described = {}
    for path in files:
        described[str(path.relative_to(staging_dir))] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)
    return described


def publish(folder: RunFolder, step: int, staging_dir: Path, files: dict[str, dict[str, Any]]) -> Checkpoint:
    """Makes the hidden folder the checkpoint of `step`. A damaged one of that step is moved out of the way."""
    final = folder.checkpoint(step)
    write_manifest(folder, step, staging_dir, files)
    if final.exists():
        mark_damaged(final)
    os.rename(staging_dir, final)
    for directory in (folder.checkpoints, folder.path):  # the first checkpoint has made the former
        _sync(directory)
    return Checkpoint(final, step)


def write_manifest(
    folder: RunFolder,
    step: int,
    staging_dir: Path,
    files: dict[str, dict[str, Any]],
    source: Mapping[str, Any] | None = None,  # what a mean was made of
) -> None:
    """Completes the hidden folder; all of it is on disk when this returns."""
    content = {"format": FORMAT, "step": step, "run": _run_of(folder), "files": dict(sorted(files.items()))}
    write_json(staging_dir / MANIFEST, sealed({**content, **(source or {})}))
    for directory in [staging_dir, *(path for path in staging_dir.rglob("*") if path.is_dir())]:
        _sync(directory)


def _run_of(folder: RunFolder) -> dict[str, str]:
    """Names a run: by its sealed recipe, so that a copy of the run folder keeps its checkpoints, and for messages by its folder.
    Empty without a recipe."""
    if not folder.recipe_file.is_file():
        return {}
    recipe = hashlib.sha256(folder.recipe_file.read_bytes()).hexdigest()
    return {"name": f"{folder.path.parent.name}/{folder.id}", "recipe": recipe}


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest with its own SHA-256 in it, so that a changed manifest is not taken for a changed file."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**content, "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def published(folder: RunFolder) -> list[Checkpoint]:
    """Returns all checkpoints of a run by step, verified or not."""
    return [checkpoint for checkpoint in present(folder) if (checkpoint.path / MANIFEST).is_file()]


def present(folder: RunFolder) -> list[Checkpoint]:
    """Returns all folders with a step's name, also without a manifest, as an interrupted copy leaves them behind."""
    checkpoints = []
    for path in folder.checkpoints.glob("step-*") if folder.checkpoints.is_dir() else ():
        digits = path.name.removeprefix("step-")
        if digits.isdigit():
            checkpoints.append(Checkpoint(path, int(digits)))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def verify(checkpoint: Checkpoint, hashed: tuple[str, ...] = EVERY_FILE) -> list[str]:
    """Returns what is wrong with a checkpoint, file by file; empty when every byte is as it was written. Files without a prefix in
    `hashed` are compared by their sizes alone: an evaluation need not read the optimizer's state.

    Raises FileNotFoundError when it is gone by now: training deletes old checkpoints while others look at them.
    """
    problems = _problems(checkpoint, hashed)
    if problems and not checkpoint.path.is_dir():
        raise FileNotFoundError(str(checkpoint.path))
    return problems


def _problems(checkpoint: Checkpoint, hashed: tuple[str, ...]) -> list[str]:
    if not (checkpoint.path / MANIFEST).is_file():
        return [f"{MANIFEST}: missing, so the checkpoint is incomplete"]
    manifest = read_json(checkpoint.path / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return [f"{MANIFEST}: not readable"]
    if manifest.get("format") != FORMAT:
        return [f"{MANIFEST}: format {manifest.get('format')}, this version reads {FORMAT}"]
    if manifest.get("step") != checkpoint.step:
        return [f"{MANIFEST}: belongs to step {manifest.get('step')}"]
    if manifest != sealed(manifest):
        return [f"{MANIFEST}: content changed (SHA-256 differs)"]
    if other := other_run(checkpoint):
        return [f"{MANIFEST}: belongs to another run ({other}) with a different recipe"]
    problems = []
    for name, expected in manifest["files"].items():
        sha256 = expected["sha256"] if name.startswith(hashed) else None
        if problem := _problem(checkpoint.path, checkpoint.path / name, expected["bytes"], sha256):
            problems.append(f"{name}: {problem}")
    listed = {*manifest["files"], MANIFEST}
    problems += [
        f"{path.relative_to(checkpoint.path)}: not in the manifest"
        for path in _files(checkpoint.path)
        if str(path.relative_to(checkpoint.path)) not in listed
    ]
    return problems


def _problem(folder: Path, path: Path, size: int, sha256: str | None) -> str:
    try:
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            return "a link"
        if not path.is_file():
            return "missing"
        if path.stat().st_size != size:
            return f"{path.stat().st_size} bytes, but {size} were written"
        return "" if sha256 is None or _sha256(path) == sha256 else "content changed (SHA-256 differs)"
    except OSError as error:  # a bad disk
        return f"cannot be read ({error.strerror})"


def other_run(checkpoint: Checkpoint) -> str:
    """Returns the name of the run that the checkpoint belongs to where that is not the one it lies in, else "". A changed
    recipe is another run; older checkpoints do not name theirs."""
    manifest = read_json(checkpoint.path / MANIFEST)
    run = manifest.get("run") if isinstance(manifest, dict) else None
    own_run = _run_of(checkpoint.run_folder)
    return str(run.get("name")) if run and own_run and run.get("recipe") != own_run["recipe"] else ""


def newest_good(folder: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest checkpoint that verifies, and a line for each newer one that does not."""
    damaged: list[str] = []
    for checkpoint in reversed(present(folder)):
        problems = verify(checkpoint)
        if not problems:
            return checkpoint, damaged
        damaged.append(f"{checkpoint.path.name} is damaged: {'; '.join(problems)}")
    return None, damaged


def mark_damaged(path: Path) -> Path:
    """Renames a checkpoint so that nothing reads it; its bytes are kept for inspection."""
    number = 1
    while (target := path.with_name(f"damaged-{number}-{path.name}")).exists():
        number += 1
    os.rename(path, target)
    return target


def clear_unfinished(folder: RunFolder) -> list[str]:
    """Removes what a killed process was writing or deleting. Call only while holding the run's lock.

    Returns the names of the checkpoints that will never be.
    """
    names = []
    for path in sorted(folder.checkpoints.glob(f"{_WRITING}*")) if folder.checkpoints.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)
        if not path.name.startswith(_DELETING):
            names.append(path.name[path.name.index("step-") :])
    return names


def prune(folder: RunFolder, keep_last: int, keep: set[int | None]) -> list[int]:
    """Deletes old checkpoints but the newest `keep_last` and the steps in `keep`. Returns the deleted steps."""
    old = published(folder)[:-keep_last]
    deleted = [checkpoint for checkpoint in old if checkpoint.step not in keep]
    for checkpoint in deleted:
        # Out of sight first: a kill partway through must not leave a checkpoint that looks whole.
        doomed = checkpoint.path.with_name(f"{_DELETING}{checkpoint.path.name}")
        os.rename(checkpoint.path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return [checkpoint.step for checkpoint in deleted]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return str(digest_of(file, hashlib.sha256()).hexdigest())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
