"""Every strategy with every kind of tuning that it does not refuse: the loss curve of one process, and a checkpoint that
answers as the one process' does. Six steps on two ranks a cell; long curves are in `test_invariance.py`.

The table of these cells is in `docs/strategies.md`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

from sft_dist.evaluate import sweep
from sft_dist.recipe.strategies import STRATEGIES, tuning_refusal
from sft_dist.recipe.tunings import KINDS
from sft_dist.run.folder import RunFolder
from tests.integration import harness

pytestmark = pytest.mark.slow

STEPS = 6
CPU_KINDS = {name: tuning for name, tuning in KINDS.items() if tuning.method != "qlora"}
CELLS = [
    (name, strategy)
    for name, tuning in CPU_KINDS.items()
    for strategy in STRATEGIES
    if strategy != "single" and tuning_refusal(strategy, tuning) is None
]


@pytest.fixture(scope="module")
def trained(tiny_model, reviews, tmp_path_factory):
    """(kind of tuning, strategy) -> run folder"""

    @cache
    def train(name: str, strategy: str) -> Path:
        folder = tmp_path_factory.mktemp("cell")
        recipe = {
            "name": "cell",
            "task": "text-classification",
            "model": {"path": str(tiny_model)},  # dropout 0.1 throughout
            "data": {"source": str(reviews), "max_length": 48, "limit": 60, "split": {"validation": 0.1, "test": 0.1}},
            "tuning": KINDS[name].model_dump(exclude_none=True),
            "train": {
                "steps": STEPS,
                "global_batch": 8,
                "micro_batch": 4,  # one on each of two ranks, or two on one: the same dropout
                "lr": 1e-2,
                "schedule": "constant",
                "log_every": 1,
                "save_every": f"{STEPS} steps",
                "strategy": strategy,
            },
        }
        (folder / "cell.yaml").write_text(json.dumps(recipe))
        return harness.run(folder / "cell.yaml", folder / "runs", 1 if strategy == "single" else 2)

    return train


@cache
def answers(run: Path) -> torch.Tensor:
    """Logits of the run's last checkpoint, loaded into a new model."""
    from sft_dist.tasks import task_of
    from sft_dist.tasks.models import build_model, load_processor
    from sft_dist.tuning import load_weights

    recipe = RunFolder(run).recipe()
    task = task_of(recipe)
    task.labels = ["neg", "pos"]
    tokenizer = load_processor(recipe, task)
    model = build_model(recipe, task, tokenizer)
    load_weights(model, run / "checkpoints" / f"step-{STEPS:08d}" / "model")
    model.eval()
    with torch.no_grad():
        return model(
            **tokenizer(["a great film", "the film was dull and poor"], padding=True, return_tensors="pt")
        ).logits


@pytest.mark.parametrize(("name", "strategy"), CELLS)
def test_a_cell(trained, name, strategy):
    single, cell = trained(name, "single"), trained(name, strategy)
    expected = harness.losses(single)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert harness.losses(cell) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected.values())) == STEPS  # the curve moves, so equality says something
    torch.testing.assert_close(answers(cell), answers(single), rtol=0, atol=1e-4)


# ── running statistics ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    """strategy -> run folder of a model with batch norms"""

    @cache
    def train(strategy: str) -> Path:
        folder = tmp_path_factory.mktemp(strategy)
        return harness.run(write_pictures(folder, strategy), folder / "runs", 1 if strategy == "single" else 2)

    return train


@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp2"])
def test_running_statistics_and_scores_are_those_of_one_process(convolutional, strategy):
    """Batch norms see other images on every rank; what is validated is what is saved."""
    one_process, folder = convolutional("single"), convolutional(strategy)
    expected, statistics = saved_statistics(one_process), saved_statistics(folder)
    assert len(expected) > 10
    for name, value in expected.items():
        torch.testing.assert_close(statistics[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert harness.losses(folder) == pytest.approx(harness.losses(one_process), abs=1e-5)
    sweep([RunFolder(folder)])
    for step, scores in harness.metrics(one_process, "validation").items():
        record = harness.metrics(folder, "validation")[step]
        assert record["loss"] == pytest.approx(scores["loss"], rel=1e-5), step
        assert record["accuracy"] == scores["accuracy"]
        saved = json.loads((folder / f"evaluation/step-{step:08d}.validation.json").read_text())
        assert record["loss"] == pytest.approx(saved["scores"]["loss"], rel=1e-5), step


def test_running_statistics_are_resumed_to_the_bit(convolutional, tmp_path):
    recipe = write_pictures(tmp_path, "ddp")
    harness.killed_at(recipe, tmp_path / "runs", 3, world_size=2)
    resumed = harness.run(recipe, tmp_path / "runs", 2)
    assert harness.weights(resumed, 4) == harness.weights(convolutional("ddp"), 4)


def saved_statistics(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "checkpoints/step-00000004/model/model.safetensors", "pt") as tensors:
        names = [name for name in tensors.keys() if "running_" in name or "num_batches" in name]  # noqa: SIM118
        return {name: tensors.get_tensor(name) for name in names}


def test_a_skipped_batch_of_nan_leaves_the_running_statistics_alone(tmp_path):
    """In its second step one rank has NaN; the run goes on, saves, and counts the other steps alone."""
    recipe = write_pictures(tmp_path, "ddp", on_bad_loss="skip")
    folder = harness.run(recipe, tmp_path / "runs", 2, arrange=nan_in_second_step)
    assert [step for step, loss in harness.losses(folder).items() if loss is None] == [2]
    statistics = saved_statistics(folder)
    assert all(value.isfinite().all() for value in statistics.values())
    assert {int(value) for name, value in statistics.items() if "num_batches" in name} == {
        3 * 2
    }  # steps x micro-batches


def nan_in_second_step(rank: int) -> None:
    from sft_dist.batches.loader import MicroBatches

    undisturbed = MicroBatches.at

    def at(micro_batches: MicroBatches, step: int, micro_step: int) -> Any:
        batch = undisturbed(micro_batches, step, micro_step)
        if (step, rank) == (2, 1):
            batch.inputs["pixel_values"].fill_(float("nan"))
        return batch

    MicroBatches.at = at  # type: ignore[method-assign]


def write_pictures(folder: Path, strategy: str, **train: Any) -> Path:
    """24 pictures of noise, and a tiny ResNet for them."""
    rng = np.random.default_rng(0)
    for number in range(24):
        (folder / f"pictures/{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60 + 8 * number, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"pictures/{number % 2}/{number}.png")
    torch.manual_seed(0)
    ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ).save_pretrained(folder / "model")
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(folder / "model")
    recipe = {
        "name": "pictures",
        "task": "image-classification",
        "model": {"path": str(folder / "model")},
        "data": {"source": str(folder / "pictures"), "split": {"validation": 0.4, "test": 0.1}},
        "tuning": "full",
        "train": {"steps": 4, "global_batch": 4, "micro_batch": 2, "lr": 1e-2, "save_every": "2 steps", "log_every": 1, "strategy": strategy, **train},
        "evaluate": {"micro_batch": 2},
    }  # fmt: skip
    (folder / "pictures.yaml").write_text(json.dumps(recipe))
    return folder / "pictures.yaml"
