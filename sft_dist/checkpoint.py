"""Checkpoints: write aside, publish with one rename, verify before use, find the newest good one.

A checkpoint exists when its manifest does. Everything is written into a hidden folder beside, flushed to disk, listed
with its SHA-256 in `manifest.json`, and renamed into place; a kill at any moment leaves either the whole checkpoint or
none. Nothing in it is a pickle:

    checkpoints/step-00000100/
      manifest.json           every file's size and SHA-256, the step
      model/                  a plain Hugging Face folder (safetensors, or a PEFT adapter)
      state/                  optimizer state, a file a rank (`state.py`)
      trainer.json            schedule, scores so far, early-stopping count
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist.recipe.run_folder import RunFolder, read_json, write_json

MANIFEST = "manifest.json"
FORMAT = 2
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A published step."""

    path: Path
    step: int

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
        """SHA-256 of the manifest: names the content of every file in it."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()


def aside_of(folder: RunFolder, step: int) -> Path:
    """Where the checkpoint of `step` is written before it exists."""
    return folder.checkpoints / f".writing-{folder.checkpoint(step).name}"


def begin(folder: RunFolder, step: int) -> Path:
    """An empty hidden folder for the files of `step`."""
    aside = aside_of(folder, step)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700, parents=True)
    return aside


def describe(aside: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The files' part of the manifest; they are on the disk when this returns."""
    described = {}
    for path in files:
        described[str(path.relative_to(aside))] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)
    return described


def publish(folder: RunFolder, step: int, files: dict[str, dict[str, Any]]) -> Checkpoint:
    """Make the hidden folder the checkpoint of `step`. A damaged one of that step is moved aside."""
    aside, final = aside_of(folder, step), folder.checkpoint(step)
    write_json(aside / MANIFEST, {"format": FORMAT, "step": step, "files": dict(sorted(files.items()))})
    for directory in [aside, *(path for path in aside.rglob("*") if path.is_dir())]:
        _sync(directory)
    if final.exists():
        set_aside(final)
    os.rename(aside, final)
    _sync(folder.checkpoints)
    return Checkpoint(final, step)


def published(folder: RunFolder) -> list[Checkpoint]:
    """All checkpoints of a run by step, verified or not."""
    found = []
    for path in folder.checkpoints.glob("step-*") if folder.checkpoints.is_dir() else ():
        digits = path.name.removeprefix("step-")
        if digits.isdigit() and (path / MANIFEST).is_file():
            found.append(Checkpoint(path, int(digits)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def verify(checkpoint: Checkpoint) -> list[str]:
    """What is wrong with a checkpoint, file by file; empty when every byte is as it was written."""
    manifest = read_json(checkpoint.path / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return [f"{MANIFEST}: not readable"]
    if manifest.get("format") != FORMAT:
        return [f"{MANIFEST}: format {manifest.get('format')}, this version reads {FORMAT}"]
    if manifest.get("step") != checkpoint.step:
        return [f"{MANIFEST}: belongs to step {manifest.get('step')}"]
    problems = []
    for name, expected in manifest["files"].items():
        path = checkpoint.path / name
        if path.is_symlink() or not path.resolve().is_relative_to(checkpoint.path.resolve()):
            problems.append(f"{name}: a link")
        elif not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{name}: {path.stat().st_size} bytes, {expected['bytes']} were written")
        elif _sha256(path) != expected["sha256"]:
            problems.append(f"{name}: content changed (SHA-256 differs)")
    listed = {*manifest["files"], MANIFEST}
    problems += [
        f"{path.relative_to(checkpoint.path)}: was added"
        for path in _files(checkpoint.path)
        if str(path.relative_to(checkpoint.path)) not in listed
    ]
    return problems


def newest_good(folder: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    damaged: list[str] = []
    for checkpoint in reversed(published(folder)):
        problems = verify(checkpoint)
        if not problems:
            return checkpoint, damaged
        damaged.append(f"{checkpoint.path.name} is damaged: {'; '.join(problems)}")
    return None, damaged


def set_aside(path: Path) -> Path:
    """Rename a checkpoint so that it is no longer found, keeping its bytes for whoever wants to look."""
    number = 1
    while (target := path.with_name(f"damaged-{number}-{path.name}")).exists():
        number += 1
    os.rename(path, target)
    return target


def clear_unfinished(folder: RunFolder) -> None:
    """Remove what a killed process was writing. Call only while holding the run's lock."""
    for path in folder.checkpoints.glob(".writing-*") if folder.checkpoints.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def prune(folder: RunFolder, keep_last: int, keep: set[int]) -> list[int]:
    """Delete old checkpoints but the newest `keep_last` and the steps in `keep`. Returns the deleted steps."""
    old = published(folder)[:-keep_last]
    deleted = [checkpoint for checkpoint in old if checkpoint.step not in keep]
    for checkpoint in deleted:
        # Out of sight first: a kill half-way through must not leave a checkpoint that looks whole.
        doomed = checkpoint.path.with_name(f".writing-deleted-{checkpoint.path.name}")
        os.rename(checkpoint.path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return [checkpoint.step for checkpoint in deleted]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
