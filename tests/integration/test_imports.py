"""What a training process imports up to its first step: libraries that cost seconds come only when they are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft_dist.data.prepare import prepare
from sft_dist.recipe.load import read, validate
from sft_dist.tasks import task_of
from sft_dist.tasks.models import load_processor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPE = """\
name: imports
task: text-classification
model: {{path: {model}}}
data: {{source: {source}, max_length: 16}}
tuning: full
train: {{steps: 1, global_batch: 2, lr: 1e-3}}
"""
UNUSED = {
    "peft", "bitsandbytes", "sklearn", "torch._inductor.compile_fx", "torch._inductor.lowering", "deepspeed",
    "transformers.trainer", "transformers.trainer_utils",
}  # fmt: skip


def test_full_tuning_loads_no_library_that_it_does_not_use(tiny_model, reviews, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=tiny_model, source=reviews))
    _prepare_data(recipe)  # scikit-learn draws the splits, once
    program = [sys.executable, str(ROOT / "benchmarks/first_step.py"), str(recipe), str(tmp_path / "runs")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "sft_dist.training.loop" in loaded
    assert UNUSED & loaded == set()


def test_peft_does_not_bring_the_compiler_along():
    program = """
import sys
from sft_dist.tuning.adapters import without_compiler
with without_compiler():
    import bitsandbytes
import os, torch
assert "bitsandbytes.backends.default.ops" in sys.modules and "torch._inductor.lowering" not in sys.modules
assert "TORCHDYNAMO_DISABLE" not in os.environ
assert torch.compile(torch.sin) is not torch.sin
"""
    env = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def _prepare_data(file: Path) -> None:
    recipe = validate(read(str(file), []))
    task = task_of(recipe)
    assert prepare(recipe, task, load_processor(recipe, task)).examples
