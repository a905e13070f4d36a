"""Saving in the background: ranks that meet in the file system only, and errors on any of them that lose nothing."""

import ctypes
import os
import threading
import time
from dataclasses import dataclass

import pytest
import torch

from sft_dist.checkpoints import saver as saver_module
from sft_dist.checkpoints import store as ckpt
from sft_dist.checkpoints.optimizer_state import Piece, write_pieces
from sft_dist.checkpoints.saver import Saved, SaveError, Saver
from sft_dist.run.attempt import record_error
from sft_dist.run.causes import Facts, classify_facts
from sft_dist.run.folder import AttemptFolder, RunFolder


@dataclass
class Ranks:
    """As many savers as there are ranks, each driven by a thread of its own, as ranks are by processes."""

    folder: RunFolder
    savers: list[Saver]

    def each(self, do):
        """`do(saver)` on every rank at once. Returns what it returned or raised, in the order of ranks."""
        results = [None] * len(self.savers)

        def one(saver):
            try:
                results[saver.rank] = do(saver)
            except Exception as error:
                results[saver.rank] = error
                saver.barrier.abort()

        threads = [threading.Thread(target=one, args=(saver,)) for saver in self.savers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        return results


class Barrier:
    """Like a collective one: it fails on all ranks when one is gone."""

    def __init__(self, parties):
        self.barrier = threading.Barrier(parties, timeout=30)

    def __call__(self):
        self.barrier.wait()

    def abort(self):
        self.barrier.abort()


def ranks_of(folder, world_size, attempt=1):
    barrier = Barrier(world_size)
    return Ranks(folder, [Saver(folder, attempt, rank, world_size, barrier) for rank in range(world_size)])


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


def writer(rank, step, elements=1000, before=lambda: None):
    """What a rank does in the background: its state, and on rank 0 the weights."""

    def write(staging_dir):
        before()
        files = [
            write_pieces([Piece("w", "s", rank * elements, torch.full((elements,), step))], staging_dir / "state", rank)
        ]
        if rank == 0:
            (staging_dir / "trainer.json").write_text("{}")
            files.append(staging_dir / "trainer.json")
        return files

    return write


def save(step, elements=1000):
    return lambda saver: saver.save(step, writer(saver.rank, step, elements))


def finish(saver):
    return saver.finish()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_writes_its_part_and_rank_0_publishes_the_whole(folder, world_size):
    ranks = ranks_of(folder, world_size)
    assert ranks.each(save(10)) == [None] * world_size
    saved, *others = ranks.each(finish)
    assert isinstance(saved, Saved)
    assert saved.step == 10
    assert others == [None] * (world_size - 1)
    (checkpoint,) = ckpt.published(folder)
    assert ckpt.verify(checkpoint) == []
    assert len(list(checkpoint.state.iterdir())) == world_size
    assert os.listdir(folder.checkpoints) == ["step-00000010"]


def test_training_goes_on_while_files_are_written_and_learns_of_the_end_by_asking(folder):
    (saver,) = ranks_of(folder, 1).savers
    disk = threading.Event()
    saver.save(10, writer(0, 10, before=disk.wait))
    for _ in range(3):
        assert saver.poll() is None
    assert ckpt.published(folder) == []
    disk.set()
    saver._save.join()
    assert saver.poll().step == 10
    assert saver.poll() is None
    assert [c.step for c in ckpt.published(folder)] == [10]


def test_rank_0_waits_for_the_slowest_rank(folder):
    ranks = ranks_of(folder, 2)
    disk = threading.Event()
    ranks.each(lambda saver: saver.save(10, writer(saver.rank, 10, before=disk.wait if saver.rank else lambda: None)))
    time.sleep(0.1)
    assert [saver.poll() for saver in ranks.savers] == [None, None]
    assert ckpt.published(folder) == []
    disk.set()
    assert ranks.each(finish)[0].step == 10


def test_the_copy_is_let_go_as_soon_as_it_is_written(folder):
    (saver,) = ranks_of(folder, 1).savers
    gone = threading.Event()

    class Copy:
        def __call__(self, staging_dir):
            return writer(0, 10)(staging_dir)

        def __del__(self):
            gone.set()

    saver.save(10, Copy())
    assert gone.wait(10)  # nobody has asked yet
    assert saver.finish().step == 10


@pytest.mark.slow
def test_many_checkpoints_in_a_row(folder):
    ranks = ranks_of(folder, 2)
    for step in range(1, 30):
        assert ranks.each(save(step)) == [None, None]
        assert ranks.each(finish)[0].step == step
    assert [ckpt.verify(checkpoint) for checkpoint in ckpt.published(folder)] == [[]] * 29


# ── a full disk ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, really full when it is full."""
    place = tmp_path / "disk"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, b"size=1m"):
        pytest.skip(f"no small file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    folder = RunFolder(place / "run")
    folder.path.mkdir()
    yield folder
    libc.umount2(str(place).encode(), 2)  # lazily: a thread may still hold a file


FITS, TOO_LARGE = 1000, 400_000  # float32 elements: 4 kB, 1.6 MB


@pytest.mark.parametrize(("world_size", "full"), [(1, {0}), (2, {0}), (2, {1}), (2, {0, 1}), (3, {1, 2})])
def test_a_full_disk_on_any_rank_loses_nothing_and_says_so(small_disk, tmp_path, world_size, full):
    folder, ranks = small_disk, ranks_of(small_disk, world_size)
    ranks.each(save(10, FITS))
    ranks.each(finish)
    ranks.each(lambda saver: save(20, TOO_LARGE if saver.rank in full else FITS)(saver))
    results = ranks.each(finish)
    told = {rank for rank, result in enumerate(results) if isinstance(result, SaveError)}
    assert told >= full | {0}  # the others share the disk, and may find it full at that moment too
    # Nothing is lost, nothing half-written is left, and there is room again.
    assert os.listdir(folder.checkpoints) == ["step-00000010"]
    assert ckpt.newest_good(folder) == (ckpt.Checkpoint(folder.checkpoint(10), 10), [])
    (folder.path / "log").write_bytes(b"x" * 500_000)
    # It says which step, that the others are whole, and why; the verdict finds the cause, whoever wrote first.
    (tmp_path / "attempt").mkdir()
    for rank in told:
        said = str(results[rank])
        assert said.startswith("the checkpoint of step 20 could not be saved; earlier checkpoints are intact: ")
        record_error(AttemptFolder(tmp_path / "attempt"), rank, 20, results[rank])
        error = {"rank": rank, "time": 1.0, "type": "SaveError", "message": said, "host": "here"}
        verdict = classify_facts(Facts(errors=(error,)))
        assert (verdict.state, verdict.cause) == ("failed", "disk full"), said
    # Started again, with room: the same step is saved.
    again = ranks_of(folder, world_size, attempt=2)
    assert ckpt.clear_unfinished(folder) == []
    again.each(save(20, FITS))
    again.each(finish)
    assert ckpt.newest_good(folder)[0].step == 20


def test_a_disk_without_room_for_even_a_folder_says_so(small_disk, monkeypatch):
    (saver,) = ranks_of(small_disk, 1).savers
    with pytest.raises(OSError, match="No space left on device"):
        (small_disk.path / "log").write_bytes(b"x" * 2_000_000)

    def mkdir(*arguments, **named):
        raise OSError(28, "No space left on device")  # tmpfs takes folders for free, others do not

    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    with pytest.raises(SaveError, match=r"step 10 could not be saved.*No space left on device"):
        saver.save(10, writer(0, 10))


def test_a_rank_that_cannot_even_say_why_does_not_keep_rank_0_waiting(folder, monkeypatch):
    ranks = ranks_of(folder, 2)

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    def write(saver):
        return writer(saver.rank, 20, before=full if saver.rank else lambda: None)

    whole = saver_module.write_json
    monkeypatch.setattr(
        saver_module, "write_json", lambda path, value: full() if "rank-1" in path.name else whole(path, value)
    )
    ranks.each(lambda saver: saver.save(20, write(saver)))
    results = ranks.each(finish)
    assert "rank 1: could neither write its files nor report why" in str(results[0])
    assert "No space left on device" in str(results[1])
    assert os.listdir(folder.checkpoints) == []


def test_a_disk_that_is_full_when_only_the_manifest_is_missing(small_disk):
    (saver,) = ranks_of(small_disk, 1).savers

    def write(staging_dir):
        files = writer(0, 10)(staging_dir)
        room = os.statvfs(staging_dir)
        (staging_dir / "model").write_bytes(b"x" * (room.f_bavail * room.f_frsize))
        return [*files, staging_dir / "model"]

    saver.save(10, write)
    with pytest.raises(SaveError, match="No space left on device"):
        saver.finish()
    assert os.listdir(small_disk.checkpoints) == []


# ── other ranks that are gone ───────────────────────────────────────────────────────────────────────────────────────
def test_when_another_rank_has_died_the_wait_ends_and_nothing_is_left(folder):
    ranks = ranks_of(folder, 2)
    ranks.each(lambda saver: saver.save(10, writer(saver.rank, 10)) if saver.rank == 0 else saver.barrier())
    rank_0 = ranks.savers[0]
    save = rank_0._save
    rank_0.wait_for_pending(0.2)
    save.join(30)  # the disk may be slow
    with pytest.raises(SaveError, match="rank 1: did not finish writing its files"):
        rank_0.poll()
    assert os.listdir(folder.checkpoints) == []


def test_after_an_error_in_training_the_checkpoint_under_way_is_still_published(folder):
    ranks = ranks_of(folder, 2)
    ranks.each(lambda saver: saver.save(10, writer(saver.rank, 10, before=lambda: time.sleep(0.2))))
    ranks.each(lambda saver: saver.wait_for_pending())
    assert ckpt.newest_good(folder)[0].step == 10


def test_an_error_that_is_no_full_disk_is_passed_on_as_it_is(folder):
    (saver,) = ranks_of(folder, 1).savers

    def write(staging_dir):
        raise PermissionError(13, "Permission denied", "model.safetensors")

    saver.save(10, write)
    with pytest.raises(SaveError, match=r"Permission denied: 'model\.safetensors'") as caught:
        saver.finish()
    assert isinstance(caught.value.__cause__, PermissionError)
