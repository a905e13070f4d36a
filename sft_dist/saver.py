"""Saves a checkpoint while training goes on: training waits for the copy in memory, a thread does the rest.

Every rank writes its own files into one hidden folder and then a note, `.rank-N.json`, with their sizes and SHA-256. Rank 0
waits for all notes, makes the manifest of them and renames the folder. Ranks meet in the file system only: a collective
call in a thread could get between those of training.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist import checkpoint as ckpt
from sft_dist.recipe.run_folder import RunFolder, read_json, write_json

LOOK_EVERY_S = 0.02
PATIENCE_S = 60.0  # for other ranks' files once training has failed


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are whole."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is published now."""

    step: int
    seconds: float  # since training was held up for it


class _Save(threading.Thread):
    """One rank's part of one checkpoint."""

    def __init__(self, step: int, work: Callable[[], None]) -> None:
        super().__init__(name=f"save-{step}", daemon=True)
        self.step, self.work = step, work
        self.started = time.monotonic()
        self.seconds = 0.0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.work()
        except Exception as error:
            self.error = error
        self.seconds = time.monotonic() - self.started


class Saver:
    """One checkpoint at a time. `save` and `finish` are called by all ranks alike, `poll` by each for itself."""

    def __init__(self, folder: RunFolder, rank: int, world_size: int, barrier: Callable[[], None]) -> None:
        self.folder, self.rank, self.world_size, self.barrier = folder, rank, world_size, barrier
        self._save: _Save | None = None

    def save(self, step: int, write: Callable[[Path], Iterable[Path]]) -> None:
        """Begin the checkpoint of `step`. `write` puts this rank's files, from memory, into a folder and names them."""
        assert self._save is None, "finish the checkpoint before"
        if self.rank == 0:
            ckpt.begin(self.folder, step)
        self.barrier()  # the folder is there, and empty, before anybody writes
        self._save = _Save(step, lambda: self._write(step, write))
        self._save.start()

    def poll(self) -> Saved | None:
        """On rank 0: the checkpoint that has been published since the last question. Raises SaveError."""
        if self._save is None or self._save.is_alive():
            return None
        save, self._save = self._save, None
        if save.error is not None:
            raise SaveError(f"the checkpoint of step {save.step} could not be saved: {save.error}") from save.error
        return Saved(save.step, save.seconds) if self.rank == 0 else None

    def finish(self) -> Saved | None:
        """Wait until the checkpoint is published and every rank knows. Raises SaveError."""
        self.settle(None)
        saved = self.poll()
        self.barrier()
        return saved

    def settle(self, timeout_s: float | None = PATIENCE_S) -> None:
        """Let a checkpoint that is under way come to its end, if it can: after an error it is the last one."""
        if self._save is not None:
            self._save.join(timeout_s)

    def _write(self, step: int, write: Callable[[Path], Iterable[Path]]) -> None:
        aside = ckpt.aside_of(self.folder, step)
        try:
            files = ckpt.describe(aside, write(aside))
        except Exception as error:
            if self.rank:
                write_json(_note(aside, self.rank), {"error": str(error)})
            else:
                shutil.rmtree(aside, ignore_errors=True)  # a full disk has room again
            raise
        if self.rank:
            write_json(_note(aside, self.rank), {"files": files})
            return
        try:
            for rank in range(1, self.world_size):
                files |= _files_of(aside, rank)
            ckpt.publish(self.folder, step, files)
        except Exception:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _note(aside: Path, rank: int) -> Path:
    return aside / f".rank-{rank}.json"


def _files_of(aside: Path, rank: int) -> dict[str, Any]:
    """What another rank has written, once it has. Raises SaveError when it could not."""
    while (note := read_json(_note(aside, rank))) is None:
        time.sleep(LOOK_EVERY_S)
    if "error" in note:
        raise SaveError(f"rank {rank}: {note['error']}")
    _note(aside, rank).unlink()
    files: dict[str, Any] = note["files"]
    return files
