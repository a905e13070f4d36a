"""One result: every strategy, any number of processes and any accumulation give one fp32 loss curve.

Tolerance: 1e-5 of the loss at each of 50 steps. The strategies add the same fp32 numbers in another order, which changes a
gradient by some 1e-7 of its size; AdamW divides by its own running size, so the change of a step stays of that order, and
fifty steps at this learning rate could leave the loss off by a few 1e-6 (largest difference measured, all strategies on 1 and 2 processes: 5e-8).
"""

from __future__ import annotations

import json
from functools import cache

import pytest

from tests.integration import harness

pytestmark = pytest.mark.slow

STEPS = 50
SLOTS = 4  # processes x accumulation: what is in a micro-batch, and its dropout, depend on this number alone
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")


@pytest.fixture(scope="module")
def curve(tiny_model, reviews, tmp_path_factory):
    """(strategy, processes, tuning) -> losses by step."""

    @cache
    def train(strategy: str, processes: int, tuning: str) -> dict[int, float]:
        folder = tmp_path_factory.mktemp(f"{strategy}-{processes}-{tuning}")
        recipe = {
            "name": "one",
            "task": "text-classification",
            "model": {"path": str(tiny_model)},  # dropout 0.1 throughout
            # 85 training rows of 3 to 25 tokens: six batches an epoch, the last one of 5 examples for 4 micro-batches
            "data": {
                "source": str(reviews),
                "max_length": 48,
                "limit": 101,
                "split": {"validation": 0.08, "test": 0.08},
            },
            "tuning": TUNINGS[tuning],
            "train": {
                "steps": STEPS,
                "global_batch": 16,
                "micro_batch": 16 // SLOTS,
                "lr": 3e-4,
                "warmup": "10%",
                "schedule": "cosine",
                "batching": "bucketed",
                "log_every": 1,
                "save_every": f"{STEPS} steps",
                "strategy": strategy,
                "loss": {"name": "cross-entropy", "class_weights": {"neg": 3.0, "pos": 0.5}, "label_smoothing": 0.1},
            },
        }
        (folder / "one.yaml").write_text(json.dumps(recipe))
        found = harness.run(folder / "one.yaml", folder / "runs", processes)
        learning_rates = {step: line["lr"] for step, line in harness.metrics(found).items()}
        assert learning_rates == LEARNING_RATES.setdefault(
            "all", learning_rates
        )  # once a step, whatever the world size
        assert (json.loads((found / "attempts/001/start.json").read_text()))["world_size"] == processes
        return harness.losses(found)

    return train


TUNINGS = {
    "full": {"method": "full"},
    "freeze": {"method": "freeze", "train_last_layers": 1},
    "lora": {"method": "lora", "dropout": 0.1},
}
LEARNING_RATES: dict[str, dict[int, float]] = {}


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_full(curve, strategy, processes):
    same(curve(strategy, processes, "full"), curve("single", 1, "full"))


@pytest.mark.parametrize("tuning", ["freeze", "lora"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frozen_weights(curve, strategy, tuning):
    same(curve(strategy, 2, tuning), curve("single", 1, tuning))


def same(found: dict[int, float], expected: dict[int, float]) -> None:
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    off = {step: abs(found[step] - expected[step]) for step in expected}
    print(f"largest difference {max(off.values()):.1e} at step {max(off, key=off.__getitem__)}")
    assert max(off.values()) <= 1e-5, off
    assert max(expected.values()) - min(expected.values()) > 0.05  # the curve moves, so equality says something
