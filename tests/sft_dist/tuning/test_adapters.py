"""Adapters of every kind on several architectures: what is trained, what the model then answers, what is refused and why."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import BertConfig, BertForTokenClassification

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Ia3Tuning, LoraTuning, PrefixTuning, PromptTuning
from sft_dist.tuning import apply_tuning
from tests.sft_dist.tuning.tiny_models import LAYERS, NAMES, build, logits, step, trained

LINEAR = {
    "bert": ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
VIRTUAL = {"prefix": PrefixTuning, "prompt": PromptTuning}


def lora(**settings: Any) -> LoraTuning:
    return LoraTuning(method="lora", **{"r": 2, **settings})


def ia3(**settings: Any) -> Ia3Tuning:
    return Ia3Tuning(method="ia3", **settings)


def virtual(method: str, tokens: int = 3, **settings: Any) -> PrefixTuning | PromptTuning:
    return VIRTUAL[method](method=method, virtual_tokens=tokens, **settings)


def head_of(kind: str) -> set[str]:
    """The head's names inside PEFT's wrapper, trained as a copy."""
    head = NAMES[kind][3]
    parts = [part for part, _ in getattr(build(kind), head[:-1]).named_parameters()]
    return {f"{head}modules_to_save.default.{part}" for part in parts}


# ── lora ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def adapted(model: nn.Module) -> set[str]:
    """Layers that have an adapter, by their name in the bare model."""
    marker = ".lora_A."
    return {name.split(marker)[0].removeprefix("base_model.model.") for name in trained(model) if marker in name}


@pytest.mark.parametrize("kind", sorted(LINEAR))
def test_all_linear_layers_of_the_body_get_adapters_and_the_head_is_trained_whole(kind):
    bare = build(kind)
    body_linear = {
        name
        for name, module in bare.named_modules()
        if any(name.endswith(f".{layer}") for layer in LINEAR[kind]) and not name.startswith(NAMES[kind][3])
    }
    pooler = {"bert.pooler.dense"} if kind == "bert" else set()
    model = apply_tuning(bare, lora(), "SEQ_CLS")
    assert len(body_linear) == LAYERS * len(LINEAR[kind])
    assert adapted(model) == body_linear | pooler
    whole = {name for name in trained(model) if ".lora_" not in name}
    head = NAMES[kind][3]
    assert whole == {
        f"base_model.model.{head}modules_to_save.default.{part}"
        for part, _ in getattr(build(kind), head[:-1]).named_parameters()
    }


def test_the_head_for_tags_is_trained_whole_beside_adapters_on_all_linear_layers():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bare = BertForTokenClassification(BertConfig(vocab_size=20, **sizes))
    model = apply_tuning(bare, lora(), "TOKEN_CLS")
    whole = {name for name in trained(model) if ".lora_" not in name}
    assert whole == {f"base_model.model.classifier.modules_to_save.default.{part}" for part in ("weight", "bias")}
    assert len(adapted(model)) == 6


@pytest.mark.parametrize("kind", sorted(LINEAR))
def test_new_adapters_change_nothing_yet(kind):
    expected = logits(build(kind))
    torch.testing.assert_close(logits(apply_tuning(build(kind), lora(), "SEQ_CLS")), expected)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (
            ["query", "value"],
            {f"bert.encoder.layer.{n}.attention.self.{part}" for n in range(3) for part in ("query", "value")},
        ),
        (r".*layer\.2.*intermediate\.dense", {"bert.encoder.layer.2.intermediate.dense"}),
    ],
)
def test_adapters_go_where_the_recipe_says(targets, expected):
    assert adapted(apply_tuning(build("bert"), lora(target_modules=targets), "SEQ_CLS")) == expected


def test_further_layers_are_trained_whole():
    model = apply_tuning(build("bert"), lora(target_modules=["query"], modules_to_save=["pooler"]), "SEQ_CLS")
    whole = {name.split(".modules_to_save")[0] for name in trained(model) if ".modules_to_save." in name}
    assert whole == {"base_model.model.bert.pooler", "base_model.model.classifier"}


def test_rank_scale_and_variants_reach_the_adapters():
    layer = "base_model.model.bert.encoder.layer.0.attention.self.query"
    plain = apply_tuning(build("bert"), lora(r=4, alpha=8, dropout=0.25), "SEQ_CLS").get_submodule(layer)
    assert plain.lora_A["default"].weight.shape == (4, 8)
    assert plain.scaling["default"] == 2.0
    assert plain.lora_dropout["default"].p == 0.25
    stable = apply_tuning(build("bert"), lora(r=4, alpha=8, rslora=True), "SEQ_CLS").get_submodule(layer)
    assert stable.scaling["default"] == 4.0
    weights = trained(apply_tuning(build("bert"), lora(dora=True), "SEQ_CLS"))
    assert any("lora_magnitude_vector" in name for name in weights)


@pytest.mark.parametrize(("kind", "near"), [("bert", "query"), ("gpt2", "c_attn"), ("llama", "q_proj")])
def test_a_layer_name_that_is_nowhere_lists_those_there_are(kind, near):
    with pytest.raises(UserError) as caught:
        apply_tuning(build(kind), lora(target_modules=["qurey"]), "SEQ_CLS")
    said = str(caught.value)
    assert "tuning.target_modules: matches no layer of the model" in said
    assert re.search(rf"valid: all-linear, .*\b{near}\b", said)


def test_one_wrong_name_beside_right_ones_is_a_mistake_too():
    with pytest.raises(UserError, match=r"tuning\.target_modules(.|\n)*qurey"):
        apply_tuning(build("bert"), lora(target_modules=["value", "qurey"]), "SEQ_CLS")


def test_a_layer_to_save_that_is_nowhere_is_a_mistake():
    with pytest.raises(UserError, match=r"tuning\.modules_to_save(.|\n)*poler"):
        apply_tuning(build("bert"), lora(modules_to_save=["poler"]), "SEQ_CLS")


def test_a_broken_regular_expression_is_a_mistake():
    with pytest.raises(UserError, match=r"tuning\.target_modules: not a regular expression"):
        apply_tuning(build("bert"), lora(target_modules="("), "SEQ_CLS")


# ── ia3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
IA3 = {
    "bert": ["attention.self.key", "attention.self.value", "attention.output.dense", "output.dense"],
    "gpt2": ["attn.c_attn", "mlp.c_proj"],
    "llama": ["self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"],
    "qwen2": ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"],
}


@pytest.mark.parametrize("kind", sorted(IA3))
def test_ia3_trains_a_vector_a_layer_and_the_head(kind):
    model = apply_tuning(build(kind), ia3(), "SEQ_CLS")
    stack = NAMES[kind][1]
    vectors = {f"{stack.format(n=n)}{layer}.ia3_l.default" for n in range(LAYERS) for layer in IA3[kind]}
    assert {name.removeprefix("base_model.model.") for name in trained(model)} == vectors | head_of(kind)
    torch.testing.assert_close(logits(model), logits(build(kind)))  # vectors of ones change nothing yet


def test_ia3_for_a_model_that_peft_does_not_know_asks_for_the_layers():
    with pytest.raises(UserError) as caught:
        apply_tuning(build("distilbert"), ia3(), "SEQ_CLS")
    said = str(caught.value)
    assert "name the layers in tuning.target_modules and feedforward_modules" in said
    assert "k_lin, lin1, lin2" in said
    tuning = ia3(target_modules=["k_lin", "v_lin", "lin2"], feedforward_modules=["lin2"])
    model = apply_tuning(build("distilbert"), tuning, "SEQ_CLS")
    assert sum(".ia3_l." in name for name in trained(model)) == 3 * LAYERS


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["key"]}, {"target_modules": ["key"], "feedforward_modules": ["value"]}],
)
def test_ia3_layers_that_do_not_go_together_are_refused(settings):
    with pytest.raises(ValidationError, match="feedforward_modules"):
        ia3(**settings)


# ── prefix and prompt ───────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *(("prefix", kind) for kind in ("bert", "gpt2", "llama", "qwen2")),
        *(("prompt", kind) for kind in ("bert", "albert", "deberta-v2", "distilbert", "modernbert")),
    ],
)
def test_virtual_tokens_are_trained_with_the_head_and_move_the_answers(method, kind):
    model = apply_tuning(build(kind), virtual(method), "SEQ_CLS")
    prompt = "prompt_encoder.default.embedding.weight"
    rest = {name.removeprefix("base_model.") for name in trained(model) if name != prompt}
    assert prompt in trained(model)
    assert head_of(kind if kind in NAMES else "bert") <= rest
    assert all(".modules_to_save.default." in name for name in rest)
    before = logits(model)
    assert trained(model) - {prompt} <= step(model, lr=5.0) <= trained(model)
    assert not torch.allclose(logits(model), before, atol=1e-5)


@pytest.mark.parametrize("kind", ["modernbert", "deberta-v2", "albert"])
def test_a_prefix_before_a_model_without_past_keys_is_refused(kind):
    with pytest.raises(UserError, match=r"(?s)tuning\.method: .*past key values.*found: prefix"):
        apply_tuning(build(kind), virtual("prefix"), "SEQ_CLS")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_a_prompt_before_a_decoder_is_refused_because_padding_would_change_answers(kind):
    with pytest.raises(UserError, match=r"(?s)tuning\.method: .*changes with the padding.*found: prompt"):
        apply_tuning(build(kind), virtual("prompt"), "SEQ_CLS")


@pytest.mark.parametrize("method", VIRTUAL)
def test_further_layers_can_be_trained_whole_beside_virtual_tokens(method):
    model = apply_tuning(build("bert"), virtual(method, modules_to_save=["pooler"]), "SEQ_CLS")
    whole = {name.split(".modules_to_save")[0] for name in trained(model) if ".modules_to_save." in name}
    assert whole == {"base_model.bert.pooler", "base_model.classifier"}
    with pytest.raises(UserError, match=r"(?s)tuning\.modules_to_save.*poler"):
        apply_tuning(build("bert"), virtual(method, modules_to_save=["poler"]), "SEQ_CLS")


def test_whisper_runs_with_its_convolutions_trained_whole_and_not_with_adapters_on_them():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    config = WhisperConfig(
        vocab_size=50, max_source_positions=10, num_mel_bins=8, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None, **sizes,
    )  # fmt: skip
    with pytest.raises(UserError, match="convolutions conv1 and conv2"):
        apply_tuning(WhisperForConditionalGeneration(config), lora(target_modules=["q_proj", "conv1"]), None)
    whole = lora(target_modules=["q_proj"], modules_to_save=["conv1", "conv2"])
    model = apply_tuning(WhisperForConditionalGeneration(config), whole, None)
    model(input_features=torch.zeros(1, 8, 20), labels=torch.tensor([[5, 6]])).loss.backward()
