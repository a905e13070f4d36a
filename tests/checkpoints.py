"""Run folders with one checkpoint, without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_dist.checkpoints import store as ckpt
from sft_dist.recipe.files import write_json
from sft_dist.recipe.load import load
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor
from sft_dist.tuning import save_weights, saved_names

STEP = 5


def run_with_checkpoint(
    path: Path, settings: dict[str, Any], labels: list[str], change: Callable[..., object]
) -> tuple[RunFolder, Any, Any]:
    """(run folder, task, processor) of a recipe with these settings. `change(model, task, processor)` is what training would do."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.yaml").write_text(json.dumps({"name": "made", "train": {"lr": 1e-3}, **settings}))
    recipe = load(path / "recipe.yaml")
    folder = RunFolder(path / "run")
    folder.path.mkdir()
    folder.recipe_file.write_text(recipe.model_dump_json())
    task = task_of(recipe)
    task.labels = labels
    processor = load_processor(recipe, task)
    model = build_model(recipe, task, processor)
    change(model, task, processor)
    staging_dir = ckpt.begin(folder, STEP, 1)
    wanted = saved_names(model)
    weights = {n: v.clone() for n, v in model.state_dict().items() if wanted is None or n in wanted}
    save_weights(model, weights, staging_dir / "model")
    processor.save_pretrained(staging_dir / "model")
    write_json(staging_dir / "trainer.json", {"labels": labels, "progress": {"best_step": STEP}})
    files = [path for path in staging_dir.rglob("*") if path.is_file()]
    ckpt.publish(folder, STEP, staging_dir, ckpt.describe(staging_dir, files))
    return folder, task, processor
