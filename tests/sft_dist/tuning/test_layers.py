"""How deep each weight lies, on encoders and decoders."""

from __future__ import annotations

import pytest
from torch import nn

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import FreezeTuning, Train
from sft_dist.tuning import apply_tuning, layer_depths
from sft_dist.tuning.layers import layer_stack
from sft_dist.tuning.optimizers import build_optimizer
from tests.sft_dist.tuning.tiny_models import KINDS, LAYERS, NAMES, build, layers, starting


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

    name, stack = layer_stack(Model())
    assert name.endswith("blocks")
    assert len(stack) == 2


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
