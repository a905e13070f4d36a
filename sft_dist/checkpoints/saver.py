"""Saves a checkpoint while training continues: training waits for the copy in memory, a thread does the rest.

Every rank writes its own files into one hidden folder and then a note, `.rank-N.json`, with their sizes and SHA-256. Rank 0
waits for all notes, makes the manifest of them and renames the folder. Ranks meet in the file system only: a collective
call in a thread could get between those of training.

Whatever goes wrong on any rank, rank 0 removes the folder, and checkpoints before it stay as they are.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist.checkpoints import store as ckpt
from sft_dist.recipe.files import read_json, write_json
from sft_dist.run.folder import RunFolder

POLL_INTERVAL_S = 0.02
WAIT_TIMEOUT_S = 20.0  # for what is under way once training has failed; torchrun kills the other ranks after 30 s


class SaveError(RuntimeError):
    """A checkpoint could not be written; earlier ones are intact."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that has just been published."""

    step: int
    seconds: float  # since training was held up for it


class _Save(threading.Thread):
    """One rank's share of one checkpoint."""

    def __init__(self, step: int, work: Callable[[], None]) -> None:
        super().__init__(name=f"save-{step}", daemon=True)
        self.step = step
        self.started = time.monotonic()
        self.seconds = 0.0
        self.error: Exception | None = None
        self._work: Callable[[], None] | None = work

    def run(self) -> None:
        assert self._work is not None
        try:
            self._work()
        except Exception as error:
            self.error = error
        self._work = None  # it holds the copy of the model
        self.seconds = time.monotonic() - self.started


class Saver:
    """Writes one checkpoint at a time. `save` and `finish` are called by all ranks alike, `poll` by each for itself."""

    def __init__(
        self, folder: RunFolder, attempt: int, rank: int, world_size: int, barrier: Callable[[], None]
    ) -> None:
        self.folder, self.attempt, self.rank, self.world_size, self.barrier = folder, attempt, rank, world_size, barrier
        self._save: _Save | None = None
        self._give_up_at = float("inf")

    def save(self, step: int, write: Callable[[Path], Iterable[Path]]) -> None:
        """Begins the checkpoint of `step`. `write` puts this rank's files, from memory, into a folder and returns them.

        Raises SaveError when not even the folder can be made.
        """
        assert self._save is None, "finish the checkpoint before"
        if self.rank == 0:
            try:
                ckpt.begin(self.folder, step, self.attempt)
            except OSError as error:
                raise _failure(step, error) from error
        self.barrier()  # the folder is there, and empty, before anybody writes
        self._save = _Save(step, lambda: self._write(step, write))
        self._save.start()

    def poll(self) -> Saved | None:
        """Returns, on rank 0, the checkpoint that was published since the last call. Raises SaveError."""
        if self._save is None or self._save.is_alive():
            return None
        save, self._save = self._save, None
        if save.error is not None:
            raise _failure(save.step, save.error) from save.error
        return Saved(save.step, save.seconds) if self.rank == 0 else None

    def finish(self) -> Saved | None:
        """Waits until the checkpoint is published and every rank knows. Raises SaveError."""
        if self._save is not None:
            self._save.join()
        saved = self.poll()
        self.barrier()
        return saved

    def wait_for_pending(self, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Waits for a checkpoint in progress, if it can still be finished: after an error it is the last one."""
        self._give_up_at = time.monotonic() + timeout_s  # other ranks may be gone
        if self._save is not None:
            self._save.join(timeout_s + 1)

    def _write(self, step: int, write: Callable[[Path], Iterable[Path]]) -> None:
        staging_dir = ckpt.staging_dir_of(self.folder, step, self.attempt)
        if self.rank:
            try:
                write_json(_note(staging_dir, self.rank), {"files": ckpt.describe(staging_dir, write(staging_dir))})
            except Exception as error:
                _tell(staging_dir, self.rank, error)
                raise
            return
        try:
            try:
                files = ckpt.describe(staging_dir, write(staging_dir))
            finally:  # also after an error: nobody's folder disappears while he writes to it
                notes = [self._wait_for(staging_dir, rank) for rank in range(1, self.world_size)]
            for rank, note in enumerate(notes, 1):
                if "error" in note:
                    raise SaveError(f"rank {rank}: {note['error']}")
                files |= note["files"]
                _note(staging_dir, rank).unlink()
            ckpt.publish(self.folder, step, staging_dir, files)
        except Exception:
            shutil.rmtree(staging_dir, ignore_errors=True)  # a full disk has room again
            raise

    def _wait_for(self, staging_dir: Path, rank: int) -> dict[str, Any]:
        """Returns the note of another rank, once it is there."""
        while (note := read_json(_note(staging_dir, rank))) is None:
            if _bare_note(staging_dir, rank).exists():
                return {"error": "could neither write its files nor report why; most likely: No space left on device"}
            if time.monotonic() > self._give_up_at:
                return {"error": "did not finish writing its files"}
            time.sleep(POLL_INTERVAL_S)
        answer: dict[str, Any] = note
        return answer


def _note(staging_dir: Path, rank: int) -> Path:
    return staging_dir / f".rank-{rank}.json"


def _bare_note(staging_dir: Path, rank: int) -> Path:
    return staging_dir / f".rank-{rank}.failed"


def _tell(staging_dir: Path, rank: int, error: Exception) -> None:
    """Leaves a note for rank 0, which waits for it. On a full disk there is usually room for an empty file."""
    try:
        write_json(_note(staging_dir, rank), {"error": str(error)})
    except OSError:
        with contextlib.suppress(OSError):  # then rank 0 learns it when it loses the connection
            _bare_note(staging_dir, rank).touch()


def _failure(step: int, error: Exception) -> SaveError:
    return SaveError(f"the checkpoint of step {step} could not be saved; earlier checkpoints are intact: {error}")
