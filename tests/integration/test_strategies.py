"""Every strategy with every kind of tuning that it does not refuse: the loss curve of one process, and a checkpoint that
answers as the one process' does. Six steps on two ranks a cell; long curves are in `test_invariance.py`.

The table of these cells is in `docs/strategies.md`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from sft_dist.recipe.run_folder import RunFolder
from sft_dist.recipe.tunings import KINDS, STRATEGIES, refusal
from tests.integration import harness

pytestmark = pytest.mark.slow

STEPS = 6
CPU_KINDS = {name: tuning for name, tuning in KINDS.items() if tuning.method != "qlora"}
CELLS = [
    (name, strategy)
    for name, tuning in CPU_KINDS.items()
    for strategy in STRATEGIES
    if strategy != "single" and refusal(strategy, tuning) is None
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
    from sft_dist.models import build_model, load_processor
    from sft_dist.tasks import task_of
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
