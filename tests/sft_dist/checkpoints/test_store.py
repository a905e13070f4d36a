"""Checkpoints: published whole or not at all, every changed byte noticed, no pickle inside."""

import ast
import json
import os
import shutil
from pathlib import Path

import pytest

from sft_dist.checkpoints import store as ckpt
from sft_dist.run.folder import RunFolder

SOURCES = Path(ckpt.__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


def write(folder, step, text="weights", attempt=1):
    """The hidden folder of a step, with files in it, and their part of the manifest."""
    staging_dir = ckpt.begin(folder, step, attempt)
    (staging_dir / "model").mkdir()
    (staging_dir / "model" / "model.safetensors").write_text(f"{text} of step {step}" * 100)
    (staging_dir / "state").mkdir()
    for rank in range(2):
        (staging_dir / "state" / f"rank-0000{rank}.safetensors").write_text(f"state of rank {rank} at step {step}")
    (staging_dir / "trainer.json").write_text("{}")
    return staging_dir, ckpt.describe(staging_dir, [path for path in staging_dir.rglob("*") if path.is_file()])


def publish(folder, step, text="weights"):
    return ckpt.publish(folder, step, *write(folder, step, text))


def test_a_published_checkpoint_verifies_and_is_found(folder):
    publish(folder, 10)
    newest = publish(folder, 20)
    assert ckpt.verify(newest) == []
    assert ckpt.newest_good(folder) == (newest, [])
    assert [c.step for c in ckpt.published(folder)] == [10, 20]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def swap_for_link(path):
    twin = path.with_name("twin")
    path.rename(twin)
    path.symlink_to(twin)


FILES = ["model/model.safetensors", "state/rank-00001.safetensors", "trainer.json"]


@pytest.mark.parametrize("damage", [flip, truncate, os.remove, swap_for_link])
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_damage_is_named_and_the_older_checkpoint_is_used(folder, damage, name):
    good, bad = publish(folder, 10), publish(folder, 20)
    damage(bad.path / name)
    found, damaged = ckpt.newest_good(folder)
    assert found == good
    assert len(damaged) == 1
    assert "step-00000020" in damaged[0]
    assert name in damaged[0] or (name, damage) == ("manifest.json", swap_for_link)  # the added twin is named


@pytest.mark.slow
def test_no_single_bit_can_change_unnoticed(folder):
    checkpoint = publish(folder, 10)
    for path in (checkpoint.path / "manifest.json", checkpoint.path / "trainer.json"):
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert ckpt.verify(checkpoint), f"bit {bit} of {path.name}"
        path.write_bytes(whole)
    assert ckpt.verify(checkpoint) == []


def swap(one, other):
    third = one.with_name("third")
    one.rename(third)
    other.rename(one)
    third.rename(other)


def test_swapped_shards_are_noticed_within_a_checkpoint_and_between_two(folder):
    first, second = publish(folder, 10), publish(folder, 20)
    swap(second.state / "rank-00000.safetensors", second.state / "rank-00001.safetensors")
    assert [problem.split(":")[0] for problem in ckpt.verify(second)] == [
        "state/rank-00000.safetensors",
        "state/rank-00001.safetensors",
    ]
    swap(second.state / "rank-00000.safetensors", second.state / "rank-00001.safetensors")
    swap(first.state / "rank-00000.safetensors", second.state / "rank-00000.safetensors")  # the same size, another step
    changed = ["state/rank-00000.safetensors: content changed (SHA-256 differs)"]
    assert ckpt.verify(first) == ckpt.verify(second) == changed


def test_an_added_file_and_a_foreign_manifest_are_noticed(folder):
    first, second = publish(folder, 10), publish(folder, 20, "other")
    (first.path / "pytorch_model.bin").write_bytes(b"x")
    assert ckpt.verify(first) == ["pytorch_model.bin: not in the manifest"]
    (second.path / ckpt.MANIFEST).write_bytes((first.path / ckpt.MANIFEST).read_bytes())
    assert ckpt.verify(second) == ["manifest.json: belongs to step 10"]


def test_a_changed_manifest_is_not_taken_for_a_changed_file(folder):
    checkpoint = publish(folder, 10)
    flip(checkpoint.path / ckpt.MANIFEST)
    assert ckpt.verify(checkpoint) == ["manifest.json: content changed (SHA-256 differs)"]


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{", '{"files": []}', "\x00\xff", '{"format": 2, "step": 10, "files": {"a": 7}}'],
)
def test_a_manifest_that_nobody_has_written_is_damage_and_no_crash(folder, manifest):
    checkpoint = publish(folder, 10)
    (checkpoint.path / ckpt.MANIFEST).write_text(manifest)
    (problem,) = ckpt.verify(checkpoint)
    assert problem.startswith("manifest.json: ")


def test_a_manifest_cannot_name_files_elsewhere(folder):
    checkpoint = publish(folder, 10)
    outside = folder.path / "recipe.json"
    outside.write_text("{}")
    manifest = checkpoint.path / ckpt.MANIFEST
    changed = json.loads(manifest.read_text().replace("trainer.json", "../../recipe.json"))
    manifest.write_text(json.dumps(ckpt.sealed(changed)))
    assert "../../recipe.json: a link" in ckpt.verify(checkpoint)


def test_a_file_that_the_disk_cannot_read_is_damage_and_no_crash(folder, monkeypatch):
    good, bad = publish(folder, 10), publish(folder, 20)

    def read(path, real=ckpt._sha256):
        if "step-00000020/trainer" in str(path):
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(ckpt, "_sha256", read)
    said = "step-00000020 is damaged: trainer.json: cannot be read (Input/output error)"
    assert ckpt.newest_good(folder) == (good, [said])
    assert bad.path.is_dir()


def test_a_half_written_newest_checkpoint_is_named_and_not_used(folder):
    good = publish(folder, 10)
    # As our own writing leaves it when it is killed: hidden.
    write(folder, 20)
    assert ckpt.newest_good(folder) == (good, [])
    assert ckpt.clear_unfinished(folder) == ["step-00000020"]
    assert os.listdir(folder.checkpoints) == ["step-00000010"]
    # As a copy between machines leaves it when it is cut short: under its name.
    (publish(folder, 30).path / ckpt.MANIFEST).unlink()
    said = "step-00000030 is damaged: manifest.json: missing, so the checkpoint is incomplete"
    assert ckpt.newest_good(folder) == (good, [said])
    assert [c.step for c in ckpt.published(folder)] == [10]


def test_a_folder_is_cleared_of_deletions_that_were_cut_short_without_a_word(folder):
    publish(folder, 10).path.rename(folder.checkpoints / ".writing-deleted-step-00000010")
    assert ckpt.clear_unfinished(folder) == []
    assert os.listdir(folder.checkpoints) == []


def test_a_rank_left_over_from_the_attempt_before_cannot_write_into_this_one(folder):
    old = ckpt.begin(folder, 10, attempt=1)
    new = ckpt.begin(folder, 10, attempt=2)
    assert old != new
    assert old.is_dir()


def test_a_checkpoint_that_is_deleted_while_somebody_verifies_it_is_not_called_damaged(folder):
    checkpoint = publish(folder, 10)
    publish(folder, 20)
    ckpt.prune(folder, 1, set())
    with pytest.raises(FileNotFoundError):
        ckpt.verify(checkpoint)


def test_publishing_over_a_damaged_step_keeps_the_old_bytes_aside(folder):
    first = publish(folder, 10)
    flip(first.path / "trainer.json")
    again = publish(folder, 10, "new")
    assert ckpt.verify(again) == []
    assert (folder.checkpoints / "damaged-1-step-00000010").is_dir()


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_before_the_return(folder, monkeypatch):
    done = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def note_rename(source, target):
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    checkpoint = publish(folder, 10)
    at = done.index("rename")
    staging_dir = str(ckpt.staging_dir_of(folder, 10, 1))
    before, after = done[:at], done[at + 1 :]
    files = [str(path.relative_to(checkpoint.path)) for path in checkpoint.path.rglob("*") if path.is_file()]
    for name in [*files, "model", "state"]:
        written = "/.manifest.json." if name == "manifest.json" else f"/{name}"
        assert any(path.startswith(staging_dir + written) for path in before), name
    assert staging_dir in before
    assert after == [str(folder.checkpoints), str(folder.path)]


def test_prune_spares_the_newest_and_what_must_stay(folder):
    for step in range(10, 70, 10):
        publish(folder, step)
    assert ckpt.prune(folder, keep_last=2, keep={20}) == [10, 30, 40]
    assert [c.step for c in ckpt.published(folder)] == [20, 50, 60]


def test_nothing_here_can_load_a_pickle():
    """torch.load, pickle and their kin have no place in saving and resuming; safetensors and JSON do it all."""
    for name in (
        "checkpoints/store",
        "checkpoints/saver",
        "checkpoints/optimizer_state",
        "training/snapshot",
        "tuning/weights",
        "tuning/optimizers",
    ):
        tree = ast.parse((SOURCES / f"{name}.py").read_text())
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            banned = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "numpy"}
            assert not banned & {module.split(".")[0] for module in modules}, name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, name


# ── whose checkpoint it is ──────────────────────────────────────────────────────────────────────────────────────────
def run_with(path, recipe):
    folder = RunFolder(path)
    folder.path.mkdir(parents=True)
    folder.recipe_file.write_text(recipe)
    return folder


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    first, second = run_with(tmp_path / "demo" / "a", '{"seed": 1}'), run_with(tmp_path / "demo" / "b", '{"seed": 2}')
    own = publish(second, 10)
    shutil.copytree(publish(first, 20).path, second.checkpoint(20))
    newest, lines = ckpt.newest_good(second)
    assert newest == own
    assert "belongs to another run (demo/a)" in lines[0]


def test_a_copied_run_folder_keeps_its_checkpoints(tmp_path):
    folder = run_with(tmp_path / "demo" / "a", '{"seed": 1}')
    publish(folder, 10)
    shutil.copytree(folder.path, tmp_path / "elsewhere")
    assert ckpt.newest_good(RunFolder(tmp_path / "elsewhere"))[1] == []


def test_a_checkpoint_that_does_not_name_its_run_is_read(tmp_path):
    folder = run_with(tmp_path / "demo" / "a", '{"seed": 1}')
    checkpoint = publish(folder, 10)
    manifest = json.loads((checkpoint.path / ckpt.MANIFEST).read_text())
    del manifest["run"]
    (checkpoint.path / ckpt.MANIFEST).write_text(json.dumps(ckpt.sealed(manifest)))
    assert ckpt.verify(checkpoint) == []
