"""Training on a stream: a process of its own reads it and writes one block of examples after another, ahead of training.

A block is what comes of the next `data.streaming.buffer` rows of an epoch, so it is a function of the recipe and of the
place where it begins (`blocks.Place`), which every checkpoint holds: a resumed run has the block made again. Blocks lie in
the run's folder, where the ranks of every node map them into memory; those that are done with are deleted.

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

from sft_dist.batches.chunks import Block, Place
from sft_dist.batches.loader import die_with_parent
from sft_dist.batches.plan import BatchPlan
from sft_dist.data.prepare import NoRowsLeft, prepare_block
from sft_dist.data.rows import Examples, table_digest
from sft_dist.data.sources import stream_tables
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json, write_json
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sft_dist.tasks.base import Task

log = logging.getLogger("sft_dist")

ON_DISK = 3  # blocks: the one before (another rank may just be leaving it), the current one, the next
LOOK_EVERY_S = 0.1
ERROR = "error.json"


# ── the process that reads ──────────────────────────────────────────────────────────────────────────────────────────
def main(run: str, place: str, parent: str) -> int:
    die_with_parent()  # it ends with the training, however that ends
    if os.getppid() != int(parent):  # it has ended already, and the next attempt may write here
        return 1
    for asked in (signal.SIGINT, signal.SIGTERM):  # which save and stop the training; the next step may need a block
        signal.signal(asked, signal.SIG_IGN)
    os.umask(0o077)
    from sft_dist.logging_setup import quiet_libraries
    from sft_dist.tasks import task_of
    from sft_dist.tasks.models import load_processor

    quiet_libraries()
    folder = RunFolder(Path(run))
    try:
        recipe = folder.recipe()
        task = task_of(recipe)
        made = build_blocks(recipe, task, load_processor(recipe, task), Place(**json.loads(place)), folder.stream)
        while next(made):
            while len(list(folder.stream.glob("block-*"))) >= ON_DISK:
                time.sleep(LOOK_EVERY_S)
    except Exception as error:  # for the ranks to raise
        is_users = isinstance(error, UserError)
        said = str(error) if is_users else f"{type(error).__name__}: {error}"
        _tell(folder.stream, said, is_users)
        if is_users:
            return 2
        raise
    return 0


def build_blocks(recipe: Recipe, task: Task, processor: Any, place: Place, folder: Path) -> Iterator[Path]:
    """Makes a block whenever it is asked for the next; never ends. Raises UserError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        nothing: UserError | None = None if place.row else UserError(Problem("the stream has no rows", "data.source"))
        for source in stream_tables(recipe.data, place.epoch, skip=place.row):
            aside = folder / f".{place.number:06d}"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            following = replace(place, row=place.row + len(source))
            try:
                examples, dropped = prepare_block(source, place.row, recipe, task, processor, aside)
            except NoRowsLeft as error:
                nothing = nothing and error
                place = following
                continue
            except UserError as error:
                hint = f"rows are numbered as the stream shuffles them in epoch {place.epoch}"
                raise UserError(
                    [replace(one, hint="; ".join(filter(None, (one.hint, hint)))) for one in error.problems]
                ) from error
            nothing = None
            steps = math.ceil(len(examples) / recipe.train.global_batch)
            following = replace(following, number=place.number + 1, step=place.step + steps)
            about = {
                "place": asdict(place),
                "next": asdict(following),
                "dropped": dropped,
                "digest": table_digest(examples),
            }
            write_json(aside / "about.json", about)
            finished = _path(folder, place.number)
            os.replace(aside, finished)
            place = following
            yield finished
        if nothing is not None:
            raise nothing
        place = replace(place, epoch=place.epoch + 1, row=0)


def _tell(folder: Path, error: str, is_users: bool) -> None:
    """All ranks, who raise it when they want a block that is not there."""
    write_json(folder / ERROR, {"error": error, "is_users": is_users})


def _path(folder: Path, number: int) -> Path:
    return folder / f"block-{number:06d}"


# ── the processes that train ────────────────────────────────────────────────────────────────────────────────────────
class Stream:
    """The blocks of a run, in order, as a training process sees them."""

    def __init__(self, folder: RunFolder, recipe: Recipe, place: Place, reader: subprocess.Popen[bytes] | None) -> None:
        self.folder, self.recipe, self.place, self.reader = folder.stream, recipe, place, reader
        self._owner = os.getpid()  # the workers of a loader are copies of it, and leave its reader and its files alone
        self._block: Block | None = None
        self._next = place

    def at(self, step: int) -> Block:
        """Waits for it when training is faster than the stream. Raises UserError or RuntimeError when no more comes."""
        while self._block is None or step > self._next.step:
            self._block = self._open(self._next)
        return self._block

    def _open(self, place: Place) -> Block:
        path = _path(self.folder, place.number)
        while not path.is_dir():
            self._check_reader()
            time.sleep(LOOK_EVERY_S)
        about = read_json(path / "about.json") or {}
        self._next = Place(**about["next"])
        if self._is_owner:
            for done in sorted(self.folder.glob("block-*")):
                if done < _path(self.folder, place.number - 1):
                    shutil.rmtree(done)
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
            first_step=place.step + 1,
            first_epoch=place.number,
        )
        return Block(examples, plan, Place(**about["place"]), about["digest"])

    def close(self) -> None:
        if self._is_owner and self.reader is not None:
            self.reader.kill()
            self.reader.wait()
            for blocks in (*self.folder.glob("block-*"), *self.folder.glob(".*")):
                shutil.rmtree(blocks, ignore_errors=True)
            if not (self.folder / ERROR).exists():  # which other ranks may still have to read
                shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _is_owner(self) -> bool:
        return self.reader is not None and os.getpid() == self._owner

    def _check_reader(self) -> None:
        code = self.reader.poll() if self._is_owner and self.reader is not None else None
        if code is not None and not (self.folder / ERROR).exists():  # for the other ranks
            _tell(self.folder, f"its process ended with exit code {code}", is_users=False)
        if problem := read_json(self.folder / ERROR):
            self.close()
            if problem["is_users"]:
                raise UserError(problem["error"])
            raise RuntimeError(f"the stream could not be read on: {problem['error']}")
        if not self.folder.is_dir():
            raise RuntimeError("rank 0 has ended the stream")


def open_stream(folder: RunFolder, recipe: Recipe, accelerator: Accelerator, saved: dict[str, Any] | None) -> Stream:
    """Every rank must call it. `saved`: of the block that a resumed run was in, its place and digest. Raises UserError when
    that block is no longer what it was."""
    place = Place(**saved["place"]) if saved else Place()
    reader = _start_reader(folder, place) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    stream = Stream(folder, recipe, place, reader)
    if saved and stream.at(place.step + 1).digest != saved["digest"]:
        where = f"row {place.row} of epoch {place.epoch}"
        what = f"the stream is not the one this run began with: other rows come after {where}"
        error = UserError(Problem(what, "data.source", hint="bring the data back as they were, or start a new run"))
        if reader is not None:
            _tell(folder.stream, str(error), is_users=True)
            stream.close()
        raise error
    return stream


def _start_reader(folder: RunFolder, place: Place) -> subprocess.Popen[bytes]:
    """What an earlier attempt left is removed."""
    shutil.rmtree(folder.stream, ignore_errors=True)
    folder.stream.mkdir(mode=0o700)
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in ranks}
    command = [
        sys.executable,
        "-m",
        "sft_dist.batches.stream",
        str(folder.path),
        json.dumps(asdict(place)),
        str(os.getpid()),
    ]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**env, "CUDA_VISIBLE_DEVICES": ""})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
