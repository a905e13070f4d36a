"""Checkpoints: published whole or not at all, every changed byte noticed, no pickle inside."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from sft_dist import checkpoint as ckpt
from sft_dist.recipe.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def publish(folder, step, text="weights"):
    folder.path.mkdir(exist_ok=True)

    def write(aside):
        (aside / "model").mkdir()
        (aside / "model" / "model.safetensors").write_text(text * 1000)
        (aside / "trainer.json").write_text("{}")

    return ckpt.publish(folder, step, write)


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
    os.truncate(path, path.stat().st_size - 1)


def swap_for_link(path):
    twin = path.with_name("twin")
    path.rename(twin)
    path.symlink_to(twin)


@pytest.mark.parametrize("damage", [flip, truncate, os.remove, swap_for_link])
@pytest.mark.parametrize("name", ["model/model.safetensors", "trainer.json"])
def test_damage_is_named_and_the_older_checkpoint_is_used(folder, damage, name):
    good, bad = publish(folder, 10), publish(folder, 20)
    damage(bad.path / name)
    found, damaged = ckpt.newest_good(folder)
    assert found == good
    assert len(damaged) == 1
    assert "step-00000020" in damaged[0]
    assert name in damaged[0]


def test_an_added_file_and_a_foreign_manifest_are_noticed(folder):
    first, second = publish(folder, 10), publish(folder, 20, "other")
    (first.path / "pytorch_model.bin").write_bytes(b"x")
    assert ckpt.verify(first) == ["pytorch_model.bin: was added"]
    (second.path / ckpt.MANIFEST).write_bytes((first.path / ckpt.MANIFEST).read_bytes())
    assert ckpt.verify(second) == ["manifest.json: belongs to step 10"]


def test_a_folder_without_manifest_is_no_checkpoint(folder):
    publish(folder, 10)
    (folder.checkpoints / "step-00000030").mkdir()
    assert [c.step for c in ckpt.published(folder)] == [10]


def test_a_failing_write_leaves_nothing_published(folder):
    folder.path.mkdir()

    def write(aside):
        (aside / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        ckpt.publish(folder, 5, write)
    assert ckpt.published(folder) == []
    ckpt.clear_unfinished(folder)
    assert list(folder.checkpoints.iterdir()) == []


def test_publishing_over_a_damaged_step_keeps_the_old_bytes_aside(folder):
    first = publish(folder, 10)
    flip(first.path / "trainer.json")
    again = publish(folder, 10, "new")
    assert ckpt.verify(again) == []
    assert (folder.checkpoints / "damaged-1-step-00000010").is_dir()


def test_prune_spares_the_newest_and_what_must_stay(folder):
    for step in range(10, 70, 10):
        publish(folder, step)
    assert ckpt.prune(folder, keep_last=2, keep={20}) == [10, 30, 40]
    assert [c.step for c in ckpt.published(folder)] == [20, 50, 60]


@pytest.mark.slow
@pytest.mark.parametrize("delay_ms", [0, 2, 5, 9, 14, 20, 30])
def test_a_kill_at_any_moment_leaves_only_whole_checkpoints(folder, delay_ms):
    """A process publishes without pause and is killed; whatever carries a checkpoint's name must verify."""
    folder.path.mkdir()
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from sft_dist import checkpoint as ckpt
        from sft_dist.recipe.run_folder import RunFolder
        folder = RunFolder(Path({str(folder.path)!r}))
        print("ready", flush=True)
        step = 0
        while True:
            step += 1
            ckpt.publish(folder, step, lambda aside: [(aside / f"part-{{i}}").write_bytes(bytes([step % 256]) * 50_000) for i in range(4)])
            ckpt.prune(folder, 3, set())
        """
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    try:
        process.wait(timeout=0.05 + delay_ms / 1000)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = ckpt.published(folder)
    assert [ckpt.verify(c) for c in found] == [[]] * len(found)
    ckpt.clear_unfinished(folder)
    assert not list(folder.checkpoints.glob(".*"))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adafactor])
def test_optimizer_state_comes_back_bit_for_bit(kind, tmp_path):
    torch.manual_seed(0)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}

    def build():
        model = nn.Linear(7, 3)
        groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "weight_decay": 0.0}]
        return model, kind(groups, lr=0.01, **options)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(2, 7)).pow(2).sum().backward()
        optimizer.step()

    model, optimizer = build()
    step(model, optimizer)
    ckpt.save_optimizer(optimizer, ["weight", "bias"], tmp_path / "optimizer.safetensors")
    twin, other = build()
    twin.load_state_dict(model.state_dict())
    ckpt.load_optimizer(other, ["weight", "bias"], tmp_path / "optimizer.safetensors")
    for _ in range(3):
        step(model, optimizer)
        step(twin, other)
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(model.bias, twin.bias)


def test_optimizer_state_of_other_weights_is_refused(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    ckpt.save_optimizer(optimizer, ["weight", "bias"], tmp_path / "o.safetensors")
    with pytest.raises(ValueError, match="bias"):
        ckpt.load_optimizer(optimizer, ["weight", "head"], tmp_path / "o.safetensors")
