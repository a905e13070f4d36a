"""Frozen weights that are stored in 16 bits give the bits that autocast gives with fp32 ones."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sft_dist.recipe.schema import FullTuning, LoraTuning
from sft_dist.tuning import apply_tuning
from sft_dist.tuning.half_precision import store_frozen_in_16_bits

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def build(tuning=None, tied=True):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=tied, **SIZES))
    model = apply_tuning(model, tuning or LoraTuning(method="lora", dropout=0.1), "CAUSAL_LM")
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)  # LoRA's B is zero at first, which would hide its gradient's way
    return model.train()


def step(model, dtype=torch.bfloat16):
    """Every number that a training step makes."""
    torch.manual_seed(1)
    ids = torch.arange(24).reshape(2, 12)
    with torch.autocast("cpu", dtype):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


def in_16_bits(model):
    return {name for name, value in model.named_parameters() if value.dtype != torch.float32}


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_step_has_the_same_bits(precision, dtype):
    model = build()
    store_frozen_in_16_bits(model, precision)
    assert {model.get_parameter(name).dtype for name in in_16_bits(model)} == {dtype}
    for value, exact in zip(step(model, dtype), step(build(), dtype), strict=True):
        torch.testing.assert_close(value, exact, rtol=0, atol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_only_what_is_multiplied_and_frozen_is_rounded(tied):
    model = build(tied=tied)
    store_frozen_in_16_bits(model, "bf16")
    rounded = {name.rsplit(".base_layer", 1)[0].rsplit(".", 1)[-1] for name in in_16_bits(model)}
    layers = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.removesuffix(".weight") for name in rounded} == (layers if tied else layers | {"weight"})
    assert ("base_model.model.lm_head.weight" in in_16_bits(model)) is not tied
    assert not any(model.get_parameter(name).requires_grad for name in in_16_bits(model))


@pytest.mark.parametrize(
    ("tuning", "precision"),
    [
        (LoraTuning(method="lora"), "fp32"),
        (LoraTuning(method="lora"), "fp8"),
        (LoraTuning(method="lora", dora=True), "bf16"),
        (FullTuning(method="full"), "bf16"),
    ],
    ids=["fp32", "fp8", "dora", "full"],
)
def test_others_stay_as_they_are(tuning, precision):
    model = build(tuning)
    store_frozen_in_16_bits(model, precision)
    assert not in_16_bits(model)
