"""A merged model against the one with its adapters apart: equal by rounding, or the layer that differs is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RTDetrForObjectDetection, RTDetrImageProcessor

from sft_dist.evaluation.merging import activations, comparison_inputs, difference
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor
from sft_dist.tuning import require_mergeable
from tests.sft_dist.tasks import tiny_vision
from tests.tiny_text import byte_tokenizer, causal_model

BOTH = ["embed_tokens", "lm_head"]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"), tie_word_embeddings=request.param)


def saved(folder: Path, **config: Any) -> Path:
    tokenizer = byte_tokenizer()
    causal_model("llama", len(tokenizer), **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_of(folder: Path, tuning: dict[str, Any]) -> Recipe:
    tuning = {"method": "lora", "r": 2, **tuning}
    source = {"source": str(folder / "none.jsonl")}
    return Recipe.model_validate(
        {"name": "merge", "task": "instruction-tuning", "model": {"path": str(folder)}, "data": source, "tuning": tuning,
         "train": {"lr": 1e-3}}
    )  # fmt: skip


def tuned(recipe: Recipe) -> tuple[Any, Any, Any]:
    """(task, processor, model), whose adapters have some values."""
    task = task_of(recipe)
    processor = load_processor(recipe, task)
    model = build_model(recipe, task, processor)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return task, processor, model


def merged_difference(recipe: Recipe, to: Path) -> str:
    task, processor, model = tuned(recipe)
    inputs = comparison_inputs(task, processor)
    apart = activations(model, task, inputs)
    model.merge_and_unload().save_pretrained(to)
    return difference(apart, activations(task.build_model(str(to), None, {}, processor), task, inputs))


@pytest.mark.parametrize(
    "tuning",
    [
        {},
        {"dora": True},
        {"rslora": True},
        {"target_modules": ["q_proj"], "modules_to_save": BOTH},
        {"target_modules": ["q_proj"], "modules_to_save": BOTH[:1]},
        {"target_modules": ["q_proj"], "modules_to_save": BOTH[1:]},
    ],
    ids=lambda tuning: " ".join(f"{key}" for key in tuning) or "lora",
)
def test_adapters_and_layers_trained_whole_merge(llama: Path, tmp_path: Path, tuning: dict[str, Any]) -> None:
    assert merged_difference(recipe_of(llama, tuning), tmp_path) == ""


@pytest.mark.parametrize("targets", [BOTH, BOTH[:1], BOTH[1:]], ids=" ".join)
def test_adapters_on_tied_embeddings_are_named_and_refused(llama: Path, tmp_path: Path, targets: list[str]) -> None:
    recipe = recipe_of(llama, {"target_modules": ["q_proj", *targets]})
    found = merged_difference(recipe, tmp_path)
    _, _, model = tuned(recipe)
    if model.config.tie_word_embeddings:
        assert "gives another output for the same input (by up to" in found
        assert "(Embedding)" in found or "lm_head (Linear)" in found
        with pytest.raises(
            UserError, match=r"tuning\.target_modules: the model ties its embeddings(.|\n)*modules_to_save"
        ):
            require_mergeable(model)
    else:
        assert found == ""
        require_mergeable(model)


@pytest.mark.slow
def test_a_detector_that_chooses_queries_merges(tmp_path: Path) -> None:
    """Its outputs may come in another order, so its layers alone are compared."""
    size = {"size": {"height": 64, "width": 64}}
    folder = tiny_vision.save(
        tmp_path / "detector", RTDetrForObjectDetection, tiny_vision.rt_detr(), RTDetrImageProcessor, **size
    )
    recipe = tiny_vision.recipe_of({"type": "object-detection"}, folder, data={"source": str(tmp_path / "none"), "labels": ["a"]},
                                   tuning={"method": "lora", "r": 2})  # fmt: skip
    assert merged_difference(recipe, tmp_path / "merged") == ""
