"""One loss curve whatever the shape: processes x accumulation as 1x8, 2x4 and 8x1, in fp32, to 1e-5 a step.

Dropout is on: its random numbers belong to the micro-batch's place in the global batch, not to the rank.
"""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests.integration import harness

pytestmark = pytest.mark.slow

TRAIN = {
    "steps": 12,
    "global_batch": 16,
    "micro_batch": 2,
    "lr": 1e-3,
    "log_every": 1,
    "save_every": "12 steps",
    # Weighted classes make a mean of micro-batch means wrong, as it is in many trainers.
    "loss": {"name": "cross-entropy", "class_weights": {"neg": 3.0, "pos": 0.5}, "label_smoothing": 0.1},
}


def write_recipe(path, tiny_model, reviews, tuning="full", **train):
    recipe = {
        "name": "shape",
        "task": "text-classification",
        "model": {"path": str(tiny_model)},
        # 96 x 0.95 = 85 training rows: the last batch of an epoch has 5 examples for 8 micro-batches.
        "data": {"source": str(reviews), "max_length": 48, "limit": 101, "split": {"validation": 0.08, "test": 0.08}},
        "tuning": tuning,
        "train": {**TRAIN, **train},
    }
    path.write_text(json.dumps(recipe))
    return path


@pytest.mark.parametrize(("tuning", "batching"), [("full", "plain"), ("lora", "bucketed")])
def test_one_curve_for_every_shape(tiny_model, reviews, tmp_path, tuning, batching):
    recipe = write_recipe(tmp_path / "shape.yaml", tiny_model, reviews, tuning, batching=batching)
    curves = {}
    for world_size in (1, 2, 8):
        folder = harness.run(recipe, tmp_path / f"{world_size}", world_size)
        assert json.loads((folder / "attempts/001/start.json").read_text())["world_size"] == world_size
        curves[world_size] = harness.losses(folder)
    assert len(curves[1]) == 12
    for world_size in (2, 8):
        for step, loss in curves[1].items():
            assert curves[world_size][step] == pytest.approx(loss, abs=1e-5), (world_size, step)
    assert max(curves[1].values()) - min(curves[1].values()) > 0.01  # the curve moves, so equality says something


def test_the_curve_is_that_of_a_plain_loop(tiny_model, reviews, tmp_path):
    """The same batches through 25 lines of plain PyTorch, whole global batches at once, dropout off."""
    recipe = write_recipe(tmp_path / "shape.yaml", tiny_model, reviews, schedule="constant", optimizer="adamw")
    text = json.loads(recipe.read_text())
    text["model"]["config"] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    recipe.write_text(json.dumps(text))
    found = harness.losses(harness.run(recipe, tmp_path / "runs", world_size=2))

    from sft_dist.batches.plan import BatchPlan
    from sft_dist.data.prepare import prepare
    from sft_dist.recipe.load import load
    from sft_dist.tasks import task_of
    from sft_dist.tasks.models import build_model, load_processor

    settings = load(recipe)
    task = task_of(settings)
    tokenizer = load_processor(settings, task)
    examples = prepare(settings, task, tokenizer).examples["train"]
    model = build_model(settings, task, tokenizer).train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    spared = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": spared, "weight_decay": 0}], lr=1e-3
    )
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([3.0, 0.5]), label_smoothing=0.1)
    plan = BatchPlan(examples.lengths, settings.train.seed, 16, "plain")
    for step in range(1, 13):
        inputs, targets = task.collate(examples.at(plan.at(step)), tokenizer, None)
        loss = criterion(model(**inputs).logits, targets)
        assert found[step] == pytest.approx(loss.item(), abs=1e-5), step
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
