"""Training on a stream: a separate process reads it and writes one chunk of examples after another, ahead of training.

A chunk holds the examples of the next `data.streaming.buffer` rows of an epoch, so it is a function of the recipe and of
the position where it begins (`chunks.StreamPosition`), which every checkpoint holds: a resumed run has the chunk made
again. Chunks lie in the run folder, where the ranks of every node map them into memory; used ones are deleted.

    python -m sft_dist.batches.stream RUN '{"number": 0, "epoch": 0, "row": 0, "step": 0}' PID_OF_RANK_0
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from sft_dist.batches.chunks import Chunk, StreamPosition
from sft_dist.batches.loader import die_with_parent
from sft_dist.batches.plan import BatchPlan
from sft_dist.data.prepare import prepare_chunk
from sft_dist.data.rows import Examples, NoRowsLeft, table_digest
from sft_dist.data.sources import stream_tables
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json, write_json
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.run.subprocesses import environment, module_command

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sft_dist.tasks.base import Task

log = logging.getLogger("sft_dist")

ON_DISK = 3  # chunks: the previous one (another rank may still be in it), the current one, the next
POLL_INTERVAL_S = 0.1
ERROR = "error.json"


# ── the process that reads ──────────────────────────────────────────────────────────────────────────────────────────
def main(run: str, position: str, parent: str) -> int:
    die_with_parent()
    if os.getppid() != int(parent):  # training has ended already, and the next attempt may write here
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):  # they save and stop the training, whose next step may need a chunk
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    # Imported late: the reader leaves the terminal's signals to the training before seconds of imports.
    from sft_dist.logging_setup import quiet_libraries
    from sft_dist.tasks import task_of
    from sft_dist.tasks.models import load_processor

    quiet_libraries()
    folder = RunFolder(Path(run))
    try:
        recipe = folder.recipe()
        task = task_of(recipe)
        chunk_paths = build_chunks(
            recipe, task, load_processor(recipe, task), StreamPosition(**json.loads(position)), folder.stream
        )
        while next(chunk_paths):
            while len(list(folder.stream.glob("chunk-*"))) >= ON_DISK:
                time.sleep(POLL_INTERVAL_S)
    except Exception as error:  # the ranks raise it
        is_users = isinstance(error, UserError)
        message = str(error) if is_users else f"{type(error).__name__}: {error}"
        _report_error(folder.stream, message, is_users)
        if is_users:
            return 2
        raise
    return 0


def build_chunks(recipe: Recipe, task: Task, processor: Any, position: StreamPosition, folder: Path) -> Iterator[Path]:
    """Yields the folder of each chunk, once it is written; never ends. Raises UserError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        empty_error: UserError | None = (
            None if position.row else UserError(Problem("the stream has no rows", "data.source"))
        )
        for source in stream_tables(recipe.data, position.epoch, position.row, [*recipe.task.media]):
            staging = folder / f".{position.number:06d}"
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            following = replace(position, row=position.row + len(source))
            try:
                examples, dropped = prepare_chunk(source, position.row, recipe, task, processor, staging)
            except NoRowsLeft as error:
                empty_error = empty_error and error
                position = following
                continue
            except UserError as error:
                hint = f"rows are numbered as the stream shuffles them in epoch {position.epoch}"
                raise UserError(
                    [replace(problem, hint="; ".join(filter(None, (problem.hint, hint)))) for problem in error.problems]
                ) from error
            empty_error = None
            steps = math.ceil(len(examples) / recipe.train.global_batch)
            following = replace(following, number=position.number + 1, step=position.step + steps)
            about = {
                "place": asdict(position),
                "next": asdict(following),
                "dropped": dropped,
                "digest": table_digest(examples),
            }
            write_json(staging / "about.json", about)
            finished = _path(folder, position.number)
            os.replace(staging, finished)
            position = following
            yield finished
        if empty_error is not None:
            raise empty_error
        position = replace(position, epoch=position.epoch + 1, row=0)


def _report_error(folder: Path, error: str, is_users: bool) -> None:
    """Leaves the error for all ranks, which raise it when the chunk they need does not exist."""
    write_json(folder / ERROR, {"error": error, "is_users": is_users})


def _path(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06d}"


# ── the processes that train ────────────────────────────────────────────────────────────────────────────────────────
class Stream:
    """The chunks of a run, in order, as a training process reads them."""

    def __init__(
        self, folder: RunFolder, recipe: Recipe, position: StreamPosition, reader: subprocess.Popen[bytes] | None
    ) -> None:
        self.folder, self.recipe, self.position, self.reader = folder.stream, recipe, position, reader
        self._owner = os.getpid()  # a loader's workers are copies of it that must not touch its reader and files
        self._chunk: Chunk | None = None
        self._next = position

    def at(self, step: int) -> Chunk:
        """Waits for the chunk when training is faster than the stream. Raises UserError or RuntimeError when the stream has ended."""
        while self._chunk is None or step > self._next.step:
            self._chunk = self._open(self._next)
        return self._chunk

    def _open(self, position: StreamPosition) -> Chunk:
        path = _path(self.folder, position.number)
        while not path.is_dir():
            self._check_reader()
            time.sleep(POLL_INTERVAL_S)
        about = read_json(path / "about.json") or {}
        self._next = StreamPosition(**about["next"])
        if self._is_owner:
            for used in sorted(self.folder.glob("chunk-*")):
                if used < _path(self.folder, position.number - 1):
                    shutil.rmtree(used)
        examples = Examples(Dataset.load_from_disk(str(path / "examples")), "train")
        if self._is_owner:
            dropped = ", ".join(f"{count} {reason}" for reason, count in about["dropped"].items() if count)
            rows = f"rows {about['place']['row']} to {self._next.row} of epoch {self._next.epoch}"
            log.info("%s of the stream: %d examples; dropped %s", rows, len(examples), dropped or "nothing")
        train = self.recipe.train
        plan = BatchPlan(
            examples.lengths,
            train.seed,
            train.global_batch,
            train.batching,
            first_step=position.step + 1,
            first_epoch=position.number,
        )
        return Chunk(examples, plan, StreamPosition(**about["place"]), about["digest"])

    def close(self) -> None:
        if self._is_owner and self.reader is not None:
            self.reader.kill()
            self.reader.wait()
            for chunks in (*self.folder.glob("chunk-*"), *self.folder.glob(".*")):
                shutil.rmtree(chunks, ignore_errors=True)
            if not (self.folder / ERROR).exists():  # other ranks may still have to read it
                shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _is_owner(self) -> bool:
        return self.reader is not None and os.getpid() == self._owner

    def _check_reader(self) -> None:
        code = self.reader.poll() if self._is_owner and self.reader is not None else None
        if code is not None and not (self.folder / ERROR).exists():  # for the other ranks
            _report_error(self.folder, f"its process ended with exit code {code}", is_users=False)
        if problem := read_json(self.folder / ERROR):
            self.close()
            if problem["is_users"]:
                raise UserError(problem["error"])
            raise RuntimeError(f"reading the stream failed: {problem['error']}")
        if not self.folder.is_dir():
            raise RuntimeError("rank 0 has ended the stream")


def open_stream(folder: RunFolder, recipe: Recipe, accelerator: Accelerator, saved: dict[str, Any] | None) -> Stream:
    """Opens the stream; every rank must call it. `saved`: position and digest of the chunk that a resumed run was in. Raises
    UserError when that chunk has changed."""
    position = StreamPosition(**saved["place"]) if saved else StreamPosition()
    reader = _start_reader(folder, position) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    stream = Stream(folder, recipe, position, reader)
    if saved and stream.at(position.step + 1).digest != saved["digest"]:
        start = f"row {position.row} of epoch {position.epoch}"
        message = f"the stream is not the one this run began with: the rows after {start} have changed"
        error = UserError(Problem(message, "data.source", hint="restore the original data, or start a new run"))
        if reader is not None:
            _report_error(folder.stream, str(error), is_users=True)
            stream.close()
        raise error
    return stream


def _start_reader(folder: RunFolder, position: StreamPosition) -> subprocess.Popen[bytes]:
    """Starts the process that reads, after removing what an earlier attempt left."""
    shutil.rmtree(folder.stream, ignore_errors=True)
    folder.stream.mkdir(mode=0o700)
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in environment().items() if name not in ranks}
    arguments = [str(folder.path), json.dumps(asdict(position)), str(os.getpid())]
    command = module_command("sft_dist.batches.stream", arguments)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**env, "CUDA_VISIBLE_DEVICES": ""})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
