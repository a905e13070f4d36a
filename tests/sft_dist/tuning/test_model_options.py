"""Switches: the same training with less memory or time, or an error that names the key; never silently nothing."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from sft_dist.data.packing import leak
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model
from sft_dist.tuning.model_options import for_training
from sft_dist.tuning.optimizers import build_optimizer
from tests.tiny_text import causal_model

TUNINGS: dict[str, Any] = {
    "full": "full",
    "frozen first layers": {"method": "freeze", "train_last_layers": 1},
    "lora": {"method": "lora", "r": 4, "dropout": 0.1},
}


def recipe_of(folder: Path, tuning: Any = "full", dropout: float = 0.1, **train: Any) -> Recipe:
    config = {"attention_dropout": dropout} if "llama" in str(folder) else {"hidden_dropout_prob": dropout}
    return Recipe.model_validate(
        {
            "name": "switches",
            "task": "text-classification",
            "model": {"path": str(folder), "config": config},
            "data": {"source": "/nowhere.csv", "labels": ["a", "b"]},
            "tuning": tuning,
            "train": {"lr": 3e-3, **train},
        }
    )


@pytest.fixture(scope="module")
def tiny_llama(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        pad_token_id=0,
    )
    LlamaModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def model_of(recipe: Recipe) -> nn.Module:
    task = task_of(recipe)
    task.labels = ["a", "b"]
    return for_training(build_model(recipe, task, AutoTokenizer.from_pretrained(recipe.model.path)), recipe)


def train(model: nn.Module, recipe: Recipe, first: int = 0, last: int = 6, optimizer: Any = None) -> list[float]:
    """Loss of each step; lengths and the size of the batch change from step to step."""
    optimizer = optimizer or build_optimizer(model, recipe.train)
    model.train()
    losses = []
    for step in range(first, last):
        random = torch.Generator().manual_seed(step)
        ids = torch.randint(5, 1000, (4 + step % 3, 6 + 2 * step), generator=random)
        torch.manual_seed(step)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        loss = nn.functional.cross_entropy(logits, ids[:, 0] % 2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# ── gradient checkpointing ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=list(TUNINGS))
@pytest.mark.parametrize("kind", ["tiny_model", "tiny_llama"])
def test_computing_activations_again_changes_no_bit(kind, tuning, request):
    """With dropout on: the second forward pass draws the same numbers."""
    folder = request.getfixturevalue(kind)
    plain, switched = (recipe_of(folder, tuning, gradient_checkpointing=on) for on in (False, True))
    model, other = model_of(plain), model_of(switched)
    assert train(model, plain) == train(other, switched)
    there = other.state_dict()
    assert all(torch.equal(value, there[name]) for name, value in model.state_dict().items())


def test_activations_are_in_fact_computed_again(tiny_model):
    counts = {}
    for on in (False, True):
        recipe = recipe_of(tiny_model, gradient_checkpointing=on)
        model, calls = model_of(recipe), []
        model.base_model.encoder.layer[0].attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        train(model, recipe, last=1)
        counts[on] = len(calls)
    assert counts == {False: 1, True: 2}


def test_frozen_first_layers_are_not_computed_back_through(tiny_model):
    recipe = recipe_of(tiny_model, TUNINGS["frozen first layers"], gradient_checkpointing=True)
    model, calls = model_of(recipe), []
    model.base_model.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))
    train(model, recipe, last=1)
    assert len(calls) == 1


def test_a_model_that_cannot_compute_activations_again_is_refused(tiny_model, monkeypatch):
    from transformers import BertForSequenceClassification

    monkeypatch.setattr(BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(
        UserError, match=r"train\.gradient_checkpointing: BertForSequenceClassification does not support"
    ):
        model_of(recipe_of(tiny_model, gradient_checkpointing=True))


# ── compile ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_a_compiled_model_trains_alike_under_the_same_names(tiny_model):
    """Fused kernels work out functions such as GELU otherwise: the losses are 1e-4 apart after six steps, not 1e-7."""
    plain, switched = (
        recipe_of(tiny_model, {"method": "lora", "dropout": 0.0}, 0.0, compile=on) for on in (False, True)
    )
    model, other = model_of(plain), model_of(switched)
    assert train(other, switched) == pytest.approx(train(model, plain), abs=5e-4)
    assert other._compiled_call_impl is not None
    assert list(model.state_dict()) == list(other.state_dict())


@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_for_bit(tiny_model):
    """The second half begins with batches of other shapes than the first did, and with dropout."""
    import torch._dynamo

    recipe = recipe_of(tiny_model, compile=True)
    model = model_of(recipe)
    optimizer = build_optimizer(model, recipe.train)
    train(model, recipe, 0, 3, optimizer)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    twin = model_of(recipe)
    twin.load_state_dict(weights)
    other = build_optimizer(twin, recipe.train)
    state = optimizer.state_dict()
    other.load_state_dict(
        {**state, "state": {k: {s: v.clone() for s, v in one.items()} for k, one in state["state"].items()}}
    )
    uninterrupted = train(model, recipe, 3, 6, optimizer)
    torch._dynamo.reset()
    assert train(twin, recipe, 3, 6, other) == uninterrupted


def test_without_a_compiler_it_is_refused(tiny_model, monkeypatch):
    import torch._inductor.cpp_builder as cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"train\.compile: torch\.compile needs a C\+\+ compiler"):
        model_of(recipe_of(tiny_model, compile=True))


# ── Liger ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def liger(monkeypatch) -> list[dict[str, Any]]:
    """Liger with kernels for llama alone; the calls it got. (The real one needs triton to be imported.)"""
    calls: list[dict[str, Any]] = []
    patches = types.ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    patches._apply_liger_kernel_to_instance = lambda **arguments: calls.append(arguments)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, patches.__name__, patches)
    monkeypatch.setattr("sft_dist.recipe.machine.is_installed", lambda module: True)
    return calls


def test_liger_patches_the_model_and_leaves_the_loss_alone(liger, tiny_llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = model_of(recipe_of(tiny_llama, "lora", liger=True))
    (call,) = liger
    assert call == {"model": model.get_base_model(), "cross_entropy": False, "fused_linear_cross_entropy": False}


def test_liger_without_kernels_for_the_model_is_refused(liger, tiny_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"train\.liger: Liger has no kernels for bert[\s\S]*valid: llama"):
        model_of(recipe_of(tiny_model, liger=True))
    assert liger == []


def test_liger_without_a_gpu_is_refused(liger, tiny_llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"train\.liger: Liger kernels need a GPU"):
        model_of(recipe_of(tiny_llama, liger=True))


def test_liger_that_is_not_installed_is_refused(tiny_llama, monkeypatch):
    monkeypatch.setattr("sft_dist.recipe.machine.is_installed", lambda module: False)
    with pytest.raises(UserError, match=r"train\.liger: .*not installed[\s\S]*pip install 'liger-kernel'"):
        model_of(recipe_of(tiny_llama, liger=True))


# ── all of them off ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_without_switches_nothing_is_touched(tiny_model):
    model = model_of(recipe_of(tiny_model))
    assert model._compiled_call_impl is None
    assert not model.is_gradient_checkpointing


# ── attention ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_packing_is_looked_at_without_flash_attention(monkeypatch):
    """It is looked at before the model is on a GPU, in fp32, where flash attention raises."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

    def flash(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", lambda model, name, **options: name)
    model = causal_model("llama", 100, "flash_attention_2")
    with pytest.raises(RuntimeError, match="FlashAttention"):
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert leak(model, 100) == 0
    assert model.config._attn_implementation == "flash_attention_2"
