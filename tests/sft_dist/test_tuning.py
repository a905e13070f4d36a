"""Which weights each kind of tuning trains, to the name, on three architectures; and weights put back exactly."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import FreezeTuning, FullTuning, LoraTuning
from sft_dist.tuning import apply_tuning, load_weights

LAYERS = 3


def build(kind: str, num_labels: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    common = {"num_labels": num_labels, "vocab_size": 50, "pad_token_id": 0}
    if kind == "bert":
        return BertForSequenceClassification(
            BertConfig(
                hidden_size=8,
                num_hidden_layers=LAYERS,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=16,
                **common,
            )
        )
    if kind == "gpt2":
        return GPT2ForSequenceClassification(GPT2Config(n_embd=8, n_layer=LAYERS, n_head=2, n_positions=16, **common))
    return LlamaForSequenceClassification(
        LlamaConfig(
            hidden_size=8,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            **common,
        )
    )


# What stands before the layers, in them (with {n} for the number), after them, and the head.
NAMES = {
    "bert": ("bert.embeddings.", "bert.encoder.layer.{n}.", "bert.pooler.", "classifier."),
    "gpt2": ("transformer.wte.|transformer.wpe.", "transformer.h.{n}.", "transformer.ln_f.", "score."),
    "llama": ("model.embed_tokens.", "model.layers.{n}.", "model.norm.", "score."),
}
LINEAR = {
    "bert": ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
KINDS = sorted(NAMES)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def starting(model: nn.Module, *prefixes: str) -> set[str]:
    """Names with one of the prefixes; each prefix must occur."""
    single = [one for prefix in prefixes for one in prefix.split("|")]
    found = {prefix: {name for name, _ in model.named_parameters() if name.startswith(prefix)} for prefix in single}
    assert all(found.values()), found
    return set().union(*found.values())


def layers(kind: str, *numbers: int) -> list[str]:
    return [NAMES[kind][1].format(n=number) for number in numbers]


def freeze(**settings: Any) -> FreezeTuning:
    return FreezeTuning(method="freeze", **settings)


def lora(**settings: Any) -> LoraTuning:
    return LoraTuning(method="lora", **{"r": 2, **settings})


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([[3, 4, 5], [6, 7, 0]]), attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]])
        ).logits


# ── full and freeze ─────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", KINDS)
def test_full_trains_everything(kind):
    model = apply_tuning(build(kind), FullTuning(method="full"), "SEQ_CLS")
    assert trained(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", range(LAYERS + 1))
def test_the_last_layers_are_trained_with_what_stands_after_them_and_the_head(kind, count):
    model = apply_tuning(build(kind), freeze(train_last_layers=count), "SEQ_CLS")
    _, _, after, head = NAMES[kind]
    assert trained(model) == starting(model, after, head, *layers(kind, *range(LAYERS - count, LAYERS)))


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_trained_when_asked_for(kind):
    model = apply_tuning(build(kind), freeze(train_last_layers=1, train_embeddings=True), "SEQ_CLS")
    before, _, after, head = NAMES[kind]
    assert trained(model) == starting(model, before, after, head, *layers(kind, LAYERS - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_name_what_is_trained_beside_the_head(kind):
    pattern = rf"^{re.escape(layers(kind, 1)[0])}.*bias$" if kind != "llama" else r"layers\.1\..*norm"
    model = apply_tuning(build(kind), freeze(train=[pattern]), "SEQ_CLS")
    _, _, after, head = NAMES[kind]
    matching = {name for name, _ in model.named_parameters() if re.search(pattern, name)}
    assert matching
    assert trained(model) == starting(model, after, head) | matching


def test_only_trained_weights_change_in_a_step():
    model = apply_tuning(build("bert"), freeze(train_last_layers=1), "SEQ_CLS")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    inputs = torch.randint(1, 50, (8, 6))
    nn.functional.cross_entropy(model(input_ids=inputs).logits, torch.arange(8) % 2).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    idle = {name for name in trained(model) if name.endswith("key.bias")}  # softmax does not see a shift of all keys
    assert trained(model) - idle <= moved <= trained(model)


def test_more_layers_than_there_are_is_a_mistake():
    with pytest.raises(UserError) as caught:
        apply_tuning(build("bert"), freeze(train_last_layers=LAYERS + 1), "SEQ_CLS")
    said = str(caught.value)
    assert "tuning.train_last_layers: the model has 3 layers" in said
    assert "valid: 0 to 3" in said


def test_a_pattern_without_a_match_shows_what_names_look_like():
    with pytest.raises(UserError) as caught:
        apply_tuning(build("bert"), freeze(train=["pooler", r"layers\.1"]), "SEQ_CLS")
    said = str(caught.value)
    assert "tuning.train.1: no weight has a name that matches" in said
    assert "bert.encoder.layer." in said


@pytest.mark.parametrize(
    ("tuning", "path"),
    [(freeze(train=["("]), "tuning.train.0"), (lora(target_modules="("), "tuning.target_modules")],
)
def test_a_broken_regular_expression_is_a_mistake(tuning, path):
    with pytest.raises(UserError, match=rf"{re.escape(path)}: not a regular expression"):
        apply_tuning(build("bert"), tuning, "SEQ_CLS")


def test_a_model_without_layers_cannot_be_frozen_by_count():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.base_model = self.one

    with pytest.raises(UserError, match="no list of layers"):
        apply_tuning(Flat(), freeze(train_last_layers=1), "SEQ_CLS")


# ── lora ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def adapted(model: nn.Module) -> set[str]:
    """Layers that have an adapter, by their name in the bare model."""
    marker = ".lora_A."
    return {name.split(marker)[0].removeprefix("base_model.model.") for name in trained(model) if marker in name}


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
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
    assert "tuning.target_modules: no layer of the model has such a name" in said
    assert re.search(rf"valid: all-linear, .*\b{near}\b", said)


def test_one_wrong_name_beside_right_ones_is_a_mistake_too():
    with pytest.raises(UserError, match=r"tuning\.target_modules(.|\n)*qurey"):
        apply_tuning(build("bert"), lora(target_modules=["value", "qurey"]), "SEQ_CLS")


def test_a_layer_to_save_that_is_nowhere_is_a_mistake():
    with pytest.raises(UserError, match=r"tuning\.modules_to_save(.|\n)*poler"):
        apply_tuning(build("bert"), lora(modules_to_save=["poler"]), "SEQ_CLS")


# ── weights put back ────────────────────────────────────────────────────────────────────────────────────────────────
def shake(model: nn.Module) -> None:
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


TUNINGS = {
    "full": FullTuning(method="full"),
    "freeze": freeze(train_last_layers=1),
    "lora": lora(),
    "dora": lora(dora=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_saved_weights_come_back_into_a_fresh_model(tmp_path, kind, tuning):
    model = apply_tuning(build(kind), TUNINGS[tuning], "SEQ_CLS")
    fresh = logits(model)
    shake(model)
    expected = logits(model)
    assert not torch.allclose(fresh, expected, atol=1e-3)
    model.save_pretrained(tmp_path)
    # The base is the same; head and adapters begin otherwise.
    other = build(kind)
    torch.manual_seed(5)
    getattr(other, NAMES[kind][3][:-1]).reset_parameters()
    twin = apply_tuning(other, TUNINGS[tuning], "SEQ_CLS")
    load_weights(twin, tmp_path)
    torch.testing.assert_close(logits(twin), expected, rtol=0, atol=0)
    assert trained(twin) == trained(model)
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    # PEFT keeps the head as it was before training beside the trained one, unused and unsaved.
    assert [n for n, value in ours.items() if not torch.equal(theirs[n], value) and ".original_module." not in n] == []


@pytest.fixture(params=["full", "lora"])
def saved(request, tmp_path):
    """(tuning, folder with its weights, their file)"""
    tuning = TUNINGS[request.param]
    apply_tuning(build("bert"), tuning, "SEQ_CLS").save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    return tuning, tmp_path, file


def test_a_missing_weight_is_refused(saved):
    tuning, folder, file = saved
    weights = load_file(file)
    lost = sorted(weights)[0]
    del weights[lost]
    save_file(weights, file)
    with pytest.raises(ValueError, match=f"lacks 1 weights, such as {re.escape(lost)}"):
        load_weights(apply_tuning(build("bert"), tuning, "SEQ_CLS"), folder)


def test_a_weight_too_many_is_refused(saved):
    tuning, folder, file = saved
    save_file({**load_file(file), "stray.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"has 1 weights that the model lacks, such as stray\.weight"):
        load_weights(apply_tuning(build("bert"), tuning, "SEQ_CLS"), folder)


def test_a_weight_of_another_shape_is_refused(saved):
    tuning, folder, _ = saved
    with pytest.raises(ValueError, match=r"classifier(.|\n)*3"):
        load_weights(apply_tuning(build("bert", num_labels=3), tuning, "SEQ_CLS"), folder)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks"):
        load_weights(build("bert"), tmp_path)
