"""A folder of the cache is used only while it is whole, and never when anybody may have written it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sft_dist.data.cached_folder import cached_folder
from sft_dist.recipe.errors import UserError


def damage_nothing(folder: Path) -> None:
    pass


def truncate(folder: Path) -> None:
    os.truncate(folder / "train" / "rows", 3)


def remove(folder: Path) -> None:
    (folder / "train" / "rows").unlink()


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder / "train")


def flip_a_bit(folder: Path) -> None:
    file = folder / "train" / "rows"
    status = file.stat()
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def spoil_record(folder: Path) -> None:
    (folder / "digests.json").write_text("[")


@pytest.mark.parametrize(
    ("damage", "num_builds"),
    [(damage_nothing, 1), (truncate, 2), (remove, 2), (remove_folder, 2), (flip_a_bit, 2), (spoil_record, 2)],
)
def test_a_damaged_folder_is_built_again(tmp_path: Path, caplog, damage, num_builds: int) -> None:
    builds = []

    def build(to: Path) -> None:
        builds.append(to)
        (to / "train").mkdir()
        (to / "train" / "rows").write_text("all rows")

    with cached_folder(tmp_path / "prepared", build) as folder:
        damage(folder)
    with cached_folder(tmp_path / "prepared", build) as folder:
        assert (folder / "train" / "rows").read_text() == "all rows"
    assert len(builds) == num_builds
    assert [record.getMessage().endswith("; it is made again") for record in caplog.records] == [True] * (
        num_builds - 1
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prepared", "prepared.lock"]


def test_the_folder_is_private_and_no_lock_follows_a_link(tmp_path: Path) -> None:
    with cached_folder(tmp_path / "prepared", lambda to: None) as folder:
        assert folder.stat().st_mode & 0o077 == 0
    (tmp_path / "diary").write_text("dear diary")
    (tmp_path / "rows.lock").symlink_to(tmp_path / "diary")
    with pytest.raises(OSError, match="symbolic links"), cached_folder(tmp_path / "rows", lambda to: None):
        pass
    assert (tmp_path / "diary").read_text() == "dear diary"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_that_everyone_may_write_is_refused(tmp_path: Path) -> None:
    with cached_folder(tmp_path / "prepared", lambda to: None) as folder:
        folder.chmod(0o777)
    with cached_folder(tmp_path / "prepared", lambda to: None):
        os.chown(folder, 12345, -1)
    with pytest.raises(UserError, match="belongs to another user"), cached_folder(folder, lambda to: None):
        pass
    folder.chmod(0o755)
    with cached_folder(tmp_path / "prepared", lambda to: None):
        pass
