"""Which weights are trained when part of the model is frozen, to the name, and from which step on."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import UperNetForSemanticSegmentation

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import BitfitTuning, FreezeTuning, FullTuning
from sft_dist.tuning import apply_tuning, unfreeze_steps, zero_frozen_gradients
from sft_dist.tuning.freeze import train_biases
from sft_dist.tuning.layers import body_of
from tests.sft_dist.tasks.tiny_vision import upernet
from tests.sft_dist.tuning.tiny_models import KINDS, LAYERS, NAMES, build, layers, starting, step, trained


def freeze(**settings: Any) -> FreezeTuning:
    return FreezeTuning(method="freeze", **settings)


def tuned(kind: str, **settings: Any):
    return apply_tuning(build(kind), freeze(**settings), "SEQ_CLS")


# ── which ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", KINDS)
def test_full_trains_everything(kind):
    model = apply_tuning(build(kind), FullTuning(method="full"), "SEQ_CLS")
    assert trained(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", range(LAYERS + 1))
def test_the_last_layers_are_trained_with_what_stands_after_them_and_the_head(kind, count):
    model = tuned(kind, train_last_layers=count)
    _, _, after, head = NAMES[kind]
    assert trained(model) == starting(model, after, head, *layers(kind, *range(LAYERS - count, LAYERS)))


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_last_layers_add_up(kind):
    model = tuned(kind, train_first_layers=1, train_last_layers=1)
    _, _, after, head = NAMES[kind]
    assert trained(model) == starting(model, after, head, *layers(kind, 0, LAYERS - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_trained_when_asked_for(kind):
    model = tuned(kind, train_first_layers=2, train_embeddings=True)
    before, _, after, head = NAMES[kind]
    assert trained(model) == starting(model, before, after, head, *layers(kind, 0, 1))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_patterns_name_what_is_trained_besides(kind):
    pattern = rf"^{re.escape(layers(kind, 1)[0])}.*bias$" if kind != "llama" else r"layers\.1\..*norm"
    model = tuned(kind, train=[pattern], train_last_layers=1)
    _, _, after, head = NAMES[kind]
    matching = {name for name, _ in model.named_parameters() if re.search(pattern, name)}
    assert matching
    assert trained(model) == starting(model, after, head, *layers(kind, LAYERS - 1)) | matching


def test_only_trained_weights_change_in_a_step():
    model = tuned("bert", train_last_layers=1)
    idle = {name for name in trained(model) if name.endswith("key.bias")}  # softmax does not see a shift of all keys
    assert trained(model) - idle <= step(model) <= trained(model)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "deberta-v2", "gpt2", "qwen2", "vit"])
def test_bitfit_trains_biases_and_the_head(kind):
    model = apply_tuning(build(kind), BitfitTuning(method="bitfit"), "SEQ_CLS")
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    outside = {name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")}
    assert trained(model) == biases | outside
    assert biases - outside
    assert starting(model, NAMES[kind][3]) <= outside


def test_bitfit_trains_the_new_head_of_a_model_without_a_body():
    """UPerNet's body is the whole model."""
    model = UperNetForSemanticSegmentation(upernet())
    assert body_of(model) is model
    model.new_weights = ["decode_head.classifier.bias", "decode_head.classifier.weight"]
    train_biases(model)
    weights = {name for name in trained(model) if not name.endswith(".bias")}
    assert weights == {"decode_head.classifier.weight"}
    assert "backbone.embeddings.patch_embeddings.bias" in trained(model)


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_bitfit_without_biases_is_a_mistake():
    with pytest.raises(UserError, match=r"tuning\.method: LlamaForSequenceClassification has no biases"):
        apply_tuning(build("llama"), BitfitTuning(method="bitfit"), "SEQ_CLS")


@pytest.mark.parametrize("key", ["train_last_layers", "train_first_layers"])
def test_more_layers_than_there_are_is_a_mistake(key):
    with pytest.raises(UserError) as caught:
        tuned("bert", **{key: LAYERS + 1})
    assert f"tuning.{key}: the model has 3 layers" in str(caught.value)
    assert "valid: 0 to 3" in str(caught.value)


def test_layers_that_are_both_first_and_last_are_a_mistake():
    with pytest.raises(UserError, match=r"(?s)the model has 3 layers.*2 first and 2 last layers.*use tuning: full"):
        tuned("bert", train_first_layers=2, train_last_layers=2)
    tuned("bert", train_first_layers=1, train_last_layers=2)


def test_all_mistakes_are_said_at_once():
    with pytest.raises(UserError) as caught:
        tuned("bert", train=["pooler", r"layers\.1", "("], train_last_layers=9)
    assert {problem.path for problem in caught.value.problems} == {
        "tuning.train.1",
        "tuning.train.2",
        "tuning.train_last_layers",
    }
    said = str(caught.value)
    assert "tuning.train.1: matches the name of no weight" in said
    assert "bert.encoder.layer." in said
    assert "tuning.train.2: not a regular expression" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "say what to train beside the head"),
        ({"train_last_layers": 0, "unfreeze_every": "1 epoch"}, "`unfreeze_every` has no effect"),
        ({"train_last_layers": 1, "unfreeze_every": "10%"}, "expected a number with a unit"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        freeze(**settings)


# ── gradual unfreezing ──────────────────────────────────────────────────────────────────────────────────────────────
def starts(tuning: FreezeTuning, kind: str = "bert", total: int = 12, per_epoch: int = 4) -> dict[str, int]:
    return unfreeze_steps(apply_tuning(build(kind), tuning, "SEQ_CLS"), tuning, total, per_epoch)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_begins_and_one_layer_more_follows_at_each_turn_down_to_the_embeddings(kind):
    tuning = freeze(train_last_layers=LAYERS, train_embeddings=True, unfreeze_every="2 steps")
    model = apply_tuning(build(kind), tuning, "SEQ_CLS")
    found = unfreeze_steps(model, tuning, total_steps=100, steps_per_epoch=10)
    before, _, after, head = NAMES[kind]
    assert not starting(model, after, head) & set(found)
    for turn, number in enumerate(reversed(range(LAYERS)), 1):
        assert {found[name] for name in starting(model, *layers(kind, number))} == {1 + 2 * turn}
    assert {found[name] for name in starting(model, before)} == {1 + 2 * (LAYERS + 1)}


def test_turns_are_counted_in_steps_or_epochs_and_end_with_the_run():
    every_epoch = starts(freeze(train_last_layers=2, unfreeze_every="1 epoch"))
    assert set(every_epoch.values()) == {5, 9}
    # 12 steps are over before the third turn: those weights are never trained.
    assert set(starts(freeze(train_last_layers=3, unfreeze_every="5 steps")).values()) == {6, 11, 13}


def test_layers_that_are_not_trained_take_no_turn():
    found = starts(freeze(train_first_layers=1, unfreeze_every="3 steps"))
    assert set(found.values()) == {4}
    assert all(name.startswith("bert.encoder.layer.0.") for name in found)


def test_without_unfreezing_nothing_waits():
    assert starts(freeze(train_last_layers=2)) == {}
    assert unfreeze_steps(build("bert"), FullTuning(method="full"), 10, 5) == {}


def test_waiting_weights_stay_as_they_are_and_gather_no_state():
    tuning = freeze(train_last_layers=2, unfreeze_every="2 steps")
    model = apply_tuning(build("bert"), tuning, "SEQ_CLS")
    first = unfreeze_steps(model, tuning, total_steps=6, steps_per_epoch=6)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for number in range(1, 7):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        model(input_ids=torch.randint(5, 50, (4, 6))).logits.square().sum().backward()
        zero_frozen_gradients(model, first, number)
        optimizer.step()
        optimizer.zero_grad()
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        open_now = {name for name in trained(model) if number >= first.get(name, 1)}
        assert moved == open_now, number
        assert {names[parameter] for parameter in optimizer.state} == open_now
