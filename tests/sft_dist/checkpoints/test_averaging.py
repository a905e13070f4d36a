"""The mean of checkpoints: its bits, the checkpoint that it is, and what cannot be averaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from sft_dist.checkpoints import store as ckpt
from sft_dist.checkpoints.averaging import make_mean, remove_means
from sft_dist.recipe.errors import UserError
from sft_dist.run.folder import RunFolder
from sft_dist.tuning import load_weights, save_weights

STEPS = (4, 8, 12)


def weights_of(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    values = torch.randn(3, 5, generator=generator)
    return {
        "norm.num_batches_tracked": torch.tensor(step),
        "norm.running_var": values[0].abs(),
        "mask": values[1] > 0,
        "scale": values[2, 0].clone(),  # no dimension
        "weight": values,
        "weight.bf16": values.bfloat16(),
        "weight.fp16": values.half(),
        "weight.fp64": values.double() / 3,
    }


def save(folder: RunFolder, step: int, weights: dict[str, Tensor], name: str = "model.safetensors") -> ckpt.Checkpoint:
    staging_dir = ckpt.begin(folder, step, 1)
    (staging_dir / "model").mkdir()
    save_file(weights, staging_dir / "model" / name, metadata={"format": "pt"})
    (staging_dir / "trainer.json").write_text(json.dumps({"labels": ["neg", "pos"], "progress": {}}))
    files = [path for path in staging_dir.rglob("*") if path.is_file()]
    return ckpt.publish(folder, step, staging_dir, ckpt.describe(staging_dir, files))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "demo" / "0123456789")
    folder.path.mkdir(parents=True)
    for step in STEPS:
        save(folder, step, weights_of(step))
    return folder


def test_values_are_means_to_the_bit_and_integers_those_of_the_newest(folder: RunFolder) -> None:
    mean = make_mean(folder, STEPS)
    averaged = load_file(mean.model / "model.safetensors")
    members = [weights_of(step) for step in STEPS]
    assert averaged.keys() == members[0].keys()
    for name, value in averaged.items():
        values = [member[name] for member in members]
        expected = values[-1]
        if value.is_floating_point():
            expected = torch.stack([one.double() for one in values]).mean(dim=0).to(value.dtype)
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        assert torch.equal(value, expected), name
    assert averaged["norm.num_batches_tracked"] == 12


def test_a_mean_is_a_checkpoint_that_names_its_members(folder: RunFolder) -> None:
    mean = make_mean(folder, STEPS)
    assert ckpt.verify(mean) == []
    assert mean.trainer_state() == {"labels": ["neg", "pos"]}
    manifest = json.loads((mean.path / "manifest.json").read_text())
    assert (manifest["step"], manifest["members"]) == (12, [4, 8, 12])
    assert manifest["member_fingerprints"] == [checkpoint.fingerprint() for checkpoint in ckpt.published(folder)]
    assert [checkpoint.step for checkpoint in ckpt.published(folder)] == [4, 8, 12], "training does not see it"


def test_the_same_members_make_the_same_bytes_and_are_not_averaged_twice(folder: RunFolder) -> None:
    mean = make_mean(folder, STEPS)
    fingerprint, written = mean.fingerprint(), (mean.path / "manifest.json").stat().st_ino
    assert (make_mean(folder, STEPS).path / "manifest.json").stat().st_ino == written
    remove_means(folder, lambda name: True)
    assert not any(folder.averages.iterdir())
    assert make_mean(folder, STEPS).fingerprint() == fingerprint


def test_a_changed_member_or_a_damaged_mean_is_averaged_again(folder: RunFolder) -> None:
    mean = make_mean(folder, STEPS)
    fingerprint = mean.fingerprint()
    file = mean.model / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert make_mean(folder, STEPS).fingerprint() == fingerprint
    assert file.read_bytes() == content
    save(folder, 8, weights_of(9))
    assert make_mean(folder, STEPS).fingerprint() != fingerprint
    assert torch.equal(
        load_file(file)["weight"], torch.stack([weights_of(s)["weight"].double() for s in (4, 9, 12)]).mean(0).float()
    )


def test_what_a_killed_process_left_behind_is_replaced(folder: RunFolder) -> None:
    unfinished = folder.averages / f".writing-{folder.candidate(12, STEPS).name}"
    (unfinished / "model").mkdir(parents=True)
    (unfinished / "model/model.safetensors").write_text("half of")
    assert ckpt.verify(make_mean(folder, STEPS)) == []
    assert not unfinished.exists()


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({**weights_of(8), "weight": torch.zeros(3, 4)}, r"weight is F32 \[3, 4\] and F32 \[3, 5\]"),
        ({**weights_of(8), "weight": torch.zeros(3, 5).half()}, r"weight is F16 \[3, 5\] and F32 \[3, 5\]"),
        ({**weights_of(8), "head": torch.zeros(1)}, "only one of them has head"),
    ],
)
def test_checkpoints_of_other_shapes_are_refused(folder: RunFolder, weights: dict[str, Tensor], reason: str) -> None:
    save(folder, 8, weights)
    with pytest.raises(UserError, match=f"mean of steps 4, 8, 12 cannot be made: steps 8 and 12 differ: {reason}"):
        make_mean(folder, STEPS)
    assert not any(folder.averages.iterdir())


def test_other_files_of_weights_are_refused(folder: RunFolder) -> None:
    save(folder, 4, weights_of(4), "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="step 4 has the files model-00001-of-00002.safetensors"):
        make_mean(folder, STEPS)


def test_a_deleted_member_is_missing_and_not_a_fault_of_the_user(folder: RunFolder) -> None:
    with pytest.raises(FileNotFoundError):
        make_mean(folder, (4, 6))


def test_logits_are_those_of_the_mean_of_the_models(tmp_path: Path) -> None:
    """Through transformers alone, and swapped into a model that holds other weights."""
    torch.manual_seed(0)
    size = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**size, intermediate_size=16, num_labels=2)
    models = [BertForSequenceClassification(config).eval() for _ in range(2)]
    folder = RunFolder(tmp_path / "run")
    for step, model in enumerate(models, 1):
        staging_dir = ckpt.begin(folder, step, 1)
        save_weights(model, model.state_dict(), staging_dir / "model")
        (staging_dir / "trainer.json").write_text('{"labels": []}')
        files = [path for path in staging_dir.rglob("*") if path.is_file()]
        ckpt.publish(folder, step, staging_dir, ckpt.describe(staging_dir, files))
    mean = make_mean(folder, (1, 2))
    with torch.no_grad():
        expected = BertForSequenceClassification(config).eval()
        for parameter, first, second in zip(*map(nn.Module.parameters, (expected, *models)), strict=True):
            parameter.copy_(((first.double() + second.double()) / 2).float())
        load_weights(models[0], mean.model)
        ids = torch.arange(20).reshape(2, 10)
        logits = [model(ids).logits for model in (expected, models[0])]
        logits.append(BertForSequenceClassification.from_pretrained(mean.model).eval()(ids).logits)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
