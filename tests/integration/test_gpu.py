"""What only a GPU can run; skipped where there is none. The same recipes are refused there at plan time (test_machine.py)."""

from __future__ import annotations

import json
import os

import pytest
import torch

from tests.integration import harness

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def train(folder, tiny_model, reviews, tuning="full", **settings):
    recipe = {
        "name": "gpu",
        "task": "text-classification",
        "model": {"path": str(tiny_model)},
        "data": {"source": str(reviews), "max_length": 48},
        "tuning": tuning,
        "train": {"steps": 20, "global_batch": 16, "micro_batch": 8, "lr": 1e-3, "log_every": 1, "save_every": "10 steps"} | settings,
    }  # fmt: skip
    folder.mkdir()
    (folder / "gpu.yaml").write_text(json.dumps(recipe))
    return harness.losses(harness.run(folder / "gpu.yaml", folder / "runs"))


@pytest.mark.parametrize("strategy", ["single", "zero2", "zero3"])
def test_fp16_with_loss_scaling_learns_what_fp32_learns(tiny_model, reviews, tmp_path, strategy):
    exact = train(tmp_path / "fp32", tiny_model, reviews)
    found = train(tmp_path / "fp16", tiny_model, reviews, precision="fp16", strategy=strategy)
    assert sorted(found) == sorted(exact)
    assert found == pytest.approx(exact, abs=0.05)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="no 8-bit matrix products"
)
def test_fp8_learns_what_fp32_learns(tiny_model, reviews, tmp_path):
    pytest.importorskip("torchao")
    exact = train(tmp_path / "fp32", tiny_model, reviews)
    assert train(tmp_path / "fp8", tiny_model, reviews, precision="fp8") == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "fsdp2", "offload": "cpu"},
        {"name": "zero2", "offload_optimizer": "cpu"},
        {"name": "zero3", "offload_optimizer": "cpu", "offload_parameters": "cpu"},
        {"name": "zero3", "offload_parameters": "nvme", "nvme_path": ""},
    ],
    ids=lambda one: "-".join(value for value in one.values() if value),
)
def test_offloading_changes_nothing(tiny_model, reviews, tmp_path, strategy):
    if "nvme_path" in strategy:
        strategy = strategy | {"nvme_path": str(tmp_path / "nvme")}
        os.makedirs(strategy["nvme_path"])
    exact = train(tmp_path / "whole", tiny_model, reviews, strategy="single")
    assert train(tmp_path / "offloaded", tiny_model, reviews, strategy=strategy) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("strategy", ["single", "zero2"])
def test_qlora_learns(tiny_model, reviews, tmp_path, strategy):
    pytest.importorskip("bitsandbytes")
    losses = train(tmp_path / "q", tiny_model, reviews, {"method": "qlora", "r": 8}, strategy=strategy, lr=5e-3)
    assert losses[20] < losses[1]
