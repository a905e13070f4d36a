"""QLoRA: what is asked of bitsandbytes, and on a GPU a model that trains, is saved and comes back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import trained

from sft_dist.recipe.schema import LoraTuning, QloraTuning
from sft_dist.tuning import apply_tuning, load_weights, save_weights, saved_names
from sft_dist.tuning.quantize import quantization


def options(tuning: Any, precision: str = "bf16") -> dict[str, Any]:
    pytest.importorskip("bitsandbytes")
    return quantization(SimpleNamespace(tuning=tuning, train=SimpleNamespace(precision=precision)))


def test_nothing_else_is_quantised():
    recipe = SimpleNamespace(tuning=LoraTuning(method="lora"), train=SimpleNamespace(precision="bf16"))
    assert quantization(recipe) == {}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_base_has_four_bits_and_what_is_trained_whole_has_all(precision, dtype):
    config = options(QloraTuning(method="qlora", modules_to_save=["pooler"]), precision)["quantization_config"]
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == dtype
    assert {"classifier", "score", "pooler"} <= set(config.llm_int8_skip_modules)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_base_in_four_bits_trains_its_adapters_and_they_come_back(tmp_path):
    from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

    tuning = QloraTuning(method="qlora", r=2)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=50, pad_token_id=0, **sizes)).save_pretrained(
        tmp_path / "base"
    )

    def build():
        torch.manual_seed(0)
        load = AutoModelForSequenceClassification.from_pretrained
        return apply_tuning(load(tmp_path / "base", dtype=torch.float32, **options(tuning)), tuning, "SEQ_CLS")

    model = build()
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    ids = torch.randint(5, 50, (4, 6), device="cuda")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits, torch.arange(4, device="cuda") % 2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert saved_names(model) == trained(model)
    weights = {name: value.cpu().clone() for name, value in model.state_dict().items() if name in trained(model)}
    save_weights(model, weights, tmp_path / "adapter")
    twin = build()
    load_weights(twin, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
