"""QLoRA: what is asked of bitsandbytes, and on a GPU a model that trains, is saved and comes back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sft_dist.recipe.schema import LoraTuning, QloraTuning
from sft_dist.tasks.loading import load_pretrained
from sft_dist.tuning import apply_tuning, load_weights, save_weights, saved_names
from sft_dist.tuning.quantize import heads_of, quantization
from tests.sft_dist.tuning.tiny_models import trained

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


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


def load(auto_class: Any, model: Any, folder: Any, tuning: Any) -> Any:
    """As a task loads it, in 4 bits on the CPU."""
    model.save_pretrained(folder)
    return load_pretrained(auto_class, str(folder), None, {}, **options(tuning, "fp32"), device_map="cpu")


def whole(model: Any) -> set[str]:
    """Linear layers that are not in 4 bits."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module).__name__ != "Linear4bit"
    }


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_of_a_language_model_stays_whole(tmp_path, tied):
    base = LlamaForCausalLM(LlamaConfig(vocab_size=50, pad_token_id=0, tie_word_embeddings=tied, **SIZES))
    model = load(AutoModelForCausalLM, base, tmp_path, QloraTuning(method="qlora"))
    assert whole(model) == {"lm_head"}
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    torch.testing.assert_close(model.lm_head.weight, base.lm_head.weight, rtol=0, atol=0)
    model(input_ids=torch.randint(5, 50, (2, 6))).logits.sum()


@pytest.mark.slow
def test_new_layers_stay_whole_whatever_their_name(tmp_path):
    from transformers import AutoModelForAudioClassification, Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(conv_dim=(16, 16), conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2,
                            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, classifier_proj_size=16, **SIZES)  # fmt: skip
    model = load(AutoModelForAudioClassification, Wav2Vec2Model(config), tmp_path, QloraTuning(method="qlora"))
    assert whole(model) == {"projector", "classifier"}


def test_a_body_of_two_parts_is_no_head():
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=8, d_ff=16, d_kv=4, num_layers=1, num_heads=2))
    assert {"lm_head", "shared"} <= set(heads_of(model))
    assert not {"encoder", "decoder"} & set(heads_of(model))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_base_in_four_bits_trains_its_adapters_and_they_come_back(tmp_path):
    from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

    tuning = QloraTuning(method="qlora", r=2)
    LlamaForSequenceClassification(LlamaConfig(vocab_size=50, pad_token_id=0, **SIZES)).save_pretrained(
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
