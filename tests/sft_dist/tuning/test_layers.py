"""How deep each weight lies, on encoders and decoders."""

from __future__ import annotations

import pytest
from torch import nn

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import FreezeTuning, Train
from sft_dist.tuning import apply_tuning, layer_depths
from sft_dist.tuning.layers import Stack, has_head, layer_stacks
from sft_dist.tuning.optimizers import build_optimizer
from tests.sft_dist.tuning.tiny_models import KINDS, LAYERS, NAMES, build, layers, starting, trained
from tests.sft_dist.tuning.tiny_stacks import DECODER, DEPTHS, ENCODER, STACKED, TIED, build_stacked


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_comes_first_then_the_layers_from_the_last_then_the_embeddings(kind):
    model = build(kind)
    before, _, after, head = NAMES[kind]
    expected = dict.fromkeys(starting(model, after, head), 0)
    for number in range(LAYERS):
        expected |= dict.fromkeys(starting(model, *layers(kind, number)), LAYERS - number)
    expected |= dict.fromkeys(starting(model, before), LAYERS + 1)
    assert layer_depths(model) == expected
    assert set(expected) == {name for name, _ in model.named_parameters()}


def test_albert_has_one_layer_that_is_used_again_and_again():
    assert set(layer_depths(build("albert")).values()) == {0, 1, 2}


def test_the_outermost_list_is_the_stack_of_layers_even_when_one_inside_is_longer():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            experts = lambda: nn.ModuleList(nn.Linear(2, 2) for _ in range(5))  # noqa: E731
            self.blocks = nn.ModuleList(nn.ModuleDict({"experts": experts()}) for _ in range(2))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = self.base_model = Body()

    assert layer_stacks(Model()) == [Stack("body", "body.blocks", 2)]


def test_a_model_without_layers_cannot_be_frozen_by_count():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.base_model = self.one

    with pytest.raises(UserError, match="no list of layers"):
        apply_tuning(Flat(), FreezeTuning(method="freeze", train_last_layers=1), "SEQ_CLS")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_learning_rate_falls_from_layer_to_layer(kind):
    model = build(kind)
    train = Train(lr=1.0, layer_decay=0.5)
    groups = build_optimizer(model, train).param_groups
    depths = layer_depths(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}
    assert found == {name: 0.5**depth for name, depth in depths.items()}
    assert groups[0]["lr"] == 1.0  # the one that is logged
    assert {group["lr"] for group in build_optimizer(model, Train(lr=1.0)).param_groups} == {1.0}


# ── several stacks ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", STACKED)
def test_depth_counts_through_all_stacks(kind):
    model = build_stacked(kind)
    expected = {}
    for prefix, depth in DEPTHS[kind]:  # later lines are exceptions to earlier ones
        expected |= dict.fromkeys(starting(model, prefix), depth)
    assert layer_depths(model) == expected


@pytest.mark.parametrize("kind", STACKED)
def test_embeddings_are_trained_alone_when_asked_for(kind):
    model = build_stacked(kind)
    depths, fixed = layer_depths(model), {n for n, p in model.named_parameters() if not p.requires_grad}
    apply_tuning(model, FreezeTuning(method="freeze", train_embeddings=True), None)
    assert trained(model) == {name for name, depth in depths.items() if depth in (0, max(depths.values()))} - fixed


def test_the_embeddings_of_t5_are_its_table_of_words():
    model = apply_tuning(build_stacked("t5"), FreezeTuning(method="freeze", train_embeddings=True), None)
    assert trained(model) == {"shared.weight", "decoder.final_layer_norm.weight"}


def test_the_last_layers_of_an_encoder_decoder_are_the_decoder_s_and_then_the_encoder_s():
    model = apply_tuning(build_stacked("t5"), FreezeTuning(method="freeze", train_last_layers=DECODER + 1), None)
    last = f"encoder.block.{ENCODER - 1}."
    assert trained(model) == starting(model, "decoder.", last, "encoder.final_layer_norm.")
    first = apply_tuning(build_stacked("t5"), FreezeTuning(method="freeze", train_first_layers=1), None)
    assert trained(first) == starting(first, "encoder.block.0.", "decoder.final_layer_norm.")
    with pytest.raises(UserError, match=f"the model has {ENCODER + DECODER} layers"):
        apply_tuning(build_stacked("t5"), FreezeTuning(method="freeze", train_last_layers=ENCODER + DECODER + 1), None)


@pytest.mark.parametrize("kind", TIED)
def test_only_the_head_of_a_model_whose_head_is_its_embeddings_is_a_mistake(kind):
    with pytest.raises(UserError, match=r"(?s)tuning\.train_last_layers: .*has no separate head.*train_last_layers: 1"):
        apply_tuning(build_stacked(kind), FreezeTuning(method="freeze", train_last_layers=0), None)
    model = apply_tuning(build_stacked(kind), FreezeTuning(method="freeze", train_last_layers=1), None)
    assert build_optimizer(model, Train(lr=1.0)).param_groups


def test_a_head_of_its_own_can_be_trained_alone():
    model = apply_tuning(build_stacked("whisper-untied"), FreezeTuning(method="freeze", train_last_layers=0), None)
    assert trained(model) == starting(model, "proj_out.", "model.decoder.layer_norm.")
    assert has_head(build_stacked("rt-detr"))


def test_weights_that_the_checkpoint_lacks_are_of_the_head_wherever_they_stand():
    model = build_stacked("rt-detr")
    model.new_weights = ["model.enc_score_head.weight", "model.denoising_class_embed.weight"]
    depths = layer_depths(model)
    assert {depths[name] for name in model.new_weights} == {0}
    assert depths["model.enc_score_head.bias"] == 3


@pytest.mark.parametrize("kind", ["marian", "whisper"])
def test_sinusoidal_positions_stay_fixed(kind):
    tuning = FreezeTuning(method="freeze", train_embeddings=True, train=["embed_positions"])
    model = apply_tuning(build_stacked(kind), tuning, None)
    assert "model.encoder.embed_positions.weight" not in trained(model)
