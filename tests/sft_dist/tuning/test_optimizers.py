"""Optimizers and schedules: every one the schema offers is built, steps, is saved, and follows its formula."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from sft_dist.checkpoints.optimizer_state import (
    SavedState,
    groups_state,
    load_groups_state,
    load_pieces,
    optimizer_pieces,
    write_pieces,
)
from sft_dist.recipe import schema
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.machine import is_installed
from sft_dist.recipe.optimizers import ELEMENTWISE, NAMED_OPTIMIZERS
from sft_dist.recipe.schema import Train
from sft_dist.tuning.optimizers import (
    OPTIMIZERS,
    before_evaluation,
    before_training,
    build_optimizer,
    build_schedule,
    load_schedule_state,
    schedule_state,
)

IN_TORCH = [
    *OPTIMIZERS,
    *(name for name, needs in NAMED_OPTIMIZERS.items() if needs == NAMED_OPTIMIZERS["adamw_torch"]),
]
IN_PACKAGES = [name for name, needs in NAMED_OPTIMIZERS.items() if needs.module and not needs.gpu]
EVERY = [
    *IN_TORCH,
    *(
        pytest.param(name, marks=pytest.mark.skipif(not is_installed(module), reason=f"{module} is not installed"))
        for name in IN_PACKAGES
        for module in [NAMED_OPTIMIZERS[name].module]
    ),
]


def train_of(**settings: Any) -> Train:
    return Train.model_validate({"lr": 0.01, **settings})


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def names_in(adapted: Any) -> list[str]:
    """Values of the discriminator `name` in a union of the schema."""
    definitions = TypeAdapter(adapted).json_schema()["$defs"].values()
    return [
        n
        for one in definitions
        for n in one["properties"]["name"].get("enum", [one["properties"]["name"].get("const")])
    ]


def lrs(schedule: Any, warmup: int, total: int, lr: float = 1.0) -> list[float]:
    """Learning rate of each step, as the loop takes it."""
    train = train_of(lr=lr, optimizer="sgd", schedule=schedule)
    optimizer = build_optimizer(small_model(), train)
    course = build_schedule(optimizer, train.schedule, warmup, total)
    found = []
    for _ in range(total):
        found.append(course.get_last_lr()[0])
        optimizer.step()
        course.step()
    return found


# ── optimizers ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_tables_have_every_optimizer_of_the_schema():
    assert sorted([*OPTIMIZERS, *NAMED_OPTIMIZERS]) == sorted(names_in(schema.Optimizer))


def test_the_table_is_that_of_the_installed_transformers():
    from transformers.training_args import OptimizerNames

    assert {one.value for one in OptimizerNames} == set(NAMED_OPTIMIZERS) | {"sgd", "adafactor"}


@pytest.mark.parametrize("name", EVERY)
def test_every_optimizer_lowers_a_loss(name):
    model = small_model()
    lr = 0.5 if name == "schedule_free_sgd" else 0.01 if "lion" in name else 0.05
    optimizer = build_optimizer(model, train_of(lr=lr, optimizer=name))
    before_training(optimizer)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(torch.arange(10)), torch.arange(10) % 2)

    before = loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    before_evaluation(optimizer)
    assert loss().item() < before - 0.05


@pytest.mark.parametrize("name", EVERY)
def test_norms_and_biases_are_never_decayed(name):
    model = small_model()
    optimizer = build_optimizer(model, train_of(optimizer={"name": name, "weight_decay": 0.3}))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {weight: decay[id(p)] for weight, p in model.named_parameters()} == {
        "0.weight": 0.3, "1.weight": 0.3, "1.bias": 0.0, "2.weight": 0.0, "2.bias": 0.0, "3.weight": 0.3, "3.bias": 0.0,
    }  # fmt: skip


def test_without_gradients_only_decay_moves_weights():
    model = small_model()
    optimizer = build_optimizer(model, train_of(lr=0.1, optimizer={"name": "adamw", "weight_decay": 0.5}))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if p.ndim == 2 else 1
        torch.testing.assert_close(p, before[name] * factor)


def test_frozen_weights_are_left_out():
    model = small_model()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    optimizer = build_optimizer(model, train_of())
    there = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert there == [id(p) for p in (model[3].weight, model[2].weight, model[2].bias, model[3].bias)]


def test_a_group_without_weights_is_not_made():
    model = small_model()
    for p in model.parameters():
        p.requires_grad = p.ndim < 2
    assert [len(group["params"]) for group in build_optimizer(model, train_of()).param_groups] == [4]


class OddNorm(nn.Module):
    """A norm whose weight has two dimensions, and a bias as T5 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 3))


def test_norms_and_biases_with_more_dimensions_are_spared_too():
    model = nn.ModuleDict({"norm": OddNorm(), "attention": nn.Linear(3, 3)})
    model["attention"].register_parameter("relative_bias", nn.Parameter(torch.zeros(3, 3)))
    decayed, spared = build_optimizer(model, train_of()).param_groups
    assert [p is model["attention"].weight for p in decayed["params"]] == [True]
    assert len(spared["params"]) == 3


def test_magnitudes_of_dora_are_never_decayed():
    """Of convolutions they have four dimensions."""
    from peft import LoraConfig, get_peft_model

    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    model = get_peft_model(layers, LoraConfig(target_modules=["0", "2"], use_dora=True, r=2))
    _, spared = build_optimizer(model, train_of()).param_groups
    magnitudes = [p for name, p in model.named_parameters() if "lora_magnitude_vector" in name]
    assert len(magnitudes) == 2
    assert {id(p) for p in spared["params"]} == {id(p) for p in magnitudes}


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"name": "adamw", "betas": [0.8, 0.95], "eps": 1e-6}, {"betas": (0.8, 0.95), "eps": 1e-6}),
        ({"name": "adam", "betas": [0.7, 0.9]}, {"betas": (0.7, 0.9), "weight_decay": 0.0}),
        ({"name": "sgd", "momentum": 0.5, "nesterov": True}, {"momentum": 0.5, "nesterov": True}),
        ({"name": "sgd"}, {"momentum": 0.9, "nesterov": False}),
        ({"name": "adafactor", "weight_decay": 0.2}, {"weight_decay": 0.2, "lr": 0.01}),
        ({"name": "adamw_torch_fused"}, {"fused": True, "weight_decay": 0.0, "lr": 0.01}),
        (
            {"name": "adamw_torch", "options": {"betas": [0.8, 0.9], "amsgrad": True}},
            {"betas": (0.8, 0.9), "amsgrad": True},
        ),
        ({"name": "rmsprop", "options": {"momentum": 0.5, "centered": True}}, {"momentum": 0.5, "centered": True}),
    ],
)
def test_options_reach_the_optimizer(settings, options):
    group = build_optimizer(small_model(), train_of(optimizer=settings)).param_groups[0]
    assert {key: group[key] for key in options} == options


def test_options_that_exclude_each_other_are_a_users_mistake():
    with pytest.raises(UserError, match=r"train\.optimizer: .*momentum"):
        build_optimizer(small_model(), train_of(optimizer={"name": "sgd", "momentum": 0.0, "nesterov": True}))


def test_an_unknown_option_says_what_the_optimizer_has():
    with pytest.raises(UserError) as caught:
        build_optimizer(small_model(), train_of(optimizer={"name": "rmsprop", "options": {"alfa": 0.9}}))
    (problem,) = caught.value.problems
    assert problem.path == "train.optimizer.options.alfa"
    assert {"alpha", "momentum"} < set(problem.valid)
    assert "lr" not in problem.valid
    assert problem.hint == "did you mean `alpha`?"


def test_a_wrong_value_of_an_option_is_a_users_mistake():
    with pytest.raises(UserError, match=r"train\.optimizer: .*alpha"):
        build_optimizer(small_model(), train_of(optimizer={"name": "rmsprop", "options": {"alpha": -1.0}}))


def test_a_missing_package_is_named_when_the_optimizer_is_made(monkeypatch):
    monkeypatch.setattr("sft_dist.tuning.optimizers.is_installed", lambda module: False)
    with pytest.raises(UserError, match="pip install 'bitsandbytes'"):
        build_optimizer(small_model(), train_of(optimizer="lion_8bit"))


# ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def large_model(seed: int) -> nn.Module:
    """Weights of more than 4096 elements, which 8-bit optimizers do keep in 8 bits."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 2))


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    before_training(optimizer)
    for step in range(first, last):
        inputs = torch.randint(100, (16,), generator=torch.Generator().manual_seed(step))
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def save_and_load(optimizer, model, other, twin, folder: Path) -> None:
    """What a checkpoint does: weights, pieces from two ranks, groups through JSON."""
    before_evaluation(optimizer)
    twin.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    for rank in range(2):
        write_pieces(optimizer_pieces(optimizer, model, lambda number, rank=rank: number % 2 == rank), folder, rank)
    groups = json.loads(json.dumps(groups_state(optimizer)))
    with SavedState(folder) as saved:
        load_pieces(other, twin, saved)
    load_groups_state(other, groups)


def values_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [dict(optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_state_goes_on_bit_for_bit(name, tmp_path):
    train = train_of(lr=0.01, optimizer={"name": name, "weight_decay": 0.1})
    model, twin = large_model(0), large_model(1)
    optimizer, other = build_optimizer(model, train), build_optimizer(twin, train)
    take_steps(model, optimizer, 0, 3)
    save_and_load(optimizer, model, other, twin, tmp_path)
    for known, loaded in zip(values_of(optimizer), values_of(other), strict=True):
        assert set(known) == set(loaded)
        for slot, value in known.items():
            assert type(loaded[slot]) is type(value), slot
            if isinstance(value, torch.Tensor):
                assert loaded[slot].dtype == value.dtype
                assert torch.equal(loaded[slot], value), slot
            else:
                assert loaded[slot] == value
    for known, loaded in zip(optimizer.param_groups, other.param_groups, strict=True):
        assert {k: v for k, v in known.items() if k != "params"} == {k: v for k, v in loaded.items() if k != "params"}
    take_steps(model, optimizer, 3, 6)
    take_steps(twin, other, 3, 6)
    before_evaluation(optimizer)
    before_evaluation(other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_an_elementwise_optimizer_does_with_parts_what_it_does_with_the_whole(name):
    """Half of a weight by itself takes the same steps: what ZeRO and FSDP2 rely on."""
    settings = {"name": name, "weight_decay": 0.1}
    whole = nn.Linear(6, 8, bias=False)
    half = nn.Linear(6, 4, bias=False)
    half.load_state_dict({"weight": whole.weight[4:].detach().clone()})
    first, second = (build_optimizer(one, train_of(optimizer=settings)) for one in (whole, half))
    for step in range(3):
        gradient = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        whole.weight.grad, half.weight.grad = gradient.clone(), gradient[4:].clone()
        first.step()
        second.step()
    assert torch.equal(whole.weight[4:], half.weight)
    slots = first.state[whole.weight]
    assert {slot for slot, value in slots.items() if value.shape == whole.weight.shape} == set(slots) - {"step"}


def test_state_that_cannot_be_written_is_refused_and_not_lost():
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, train_of())
    optimizer.state[model.weight]["projector"] = object()
    with pytest.raises(ValueError, match="has a object, which cannot be saved"):
        list(optimizer_pieces(optimizer, model, lambda number: True))


@pytest.mark.skipif(not is_installed("schedulefree"), reason="schedulefree is not installed")
def test_a_schedule_free_optimizer_is_evaluated_with_other_weights_than_it_trains():
    model = large_model(0)
    optimizer = build_optimizer(model, train_of(lr=0.1, optimizer="schedule_free_adamw"))
    take_steps(model, optimizer, 0, 3)
    trained = [p.detach().clone() for p in model.parameters()]
    before_training(optimizer)  # a second time: nothing
    assert all(torch.equal(a, b) for a, b in zip(trained, model.parameters(), strict=True))
    before_evaluation(optimizer)
    assert not any(torch.equal(a, b) for a, b in zip(trained, model.parameters(), strict=True))
    before_training(optimizer)
    for known, found in zip(trained, model.parameters(), strict=True):
        torch.testing.assert_close(known, found)


def test_other_optimizers_take_no_notice():
    model = small_model()
    optimizer = build_optimizer(model, train_of())
    before = [p.detach().clone() for p in model.parameters()]
    before_training(optimizer)
    before_evaluation(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ── schedules ───────────────────────────────────────────────────────────────────────────────────────────────────────
TOTAL, WARMUP = 20, 5


def after(step: int) -> float:
    """Share of the course after warm-up that is done when `step` (from 0) starts."""
    return (step - WARMUP) / (TOTAL - WARMUP)


FORMULAS = {
    "linear": lambda step: 1 - after(step),
    "cosine": lambda step: (1 + math.cos(math.pi * after(step))) / 2,
    "constant_with_warmup": lambda step: 1.0,
    "inverse_sqrt": lambda step: math.sqrt(WARMUP / step),
    "cosine_with_restarts": lambda step: (1 + math.cos(math.pi * (3 * after(step) % 1))) / 2,
    "cosine_with_min_lr": lambda step: 0.2 + 0.8 * (1 + math.cos(math.pi * after(step))) / 2,
    "polynomial": lambda step: (1 - 0.01) * (1 - after(step)) ** 2 + 0.01,
}
OPTIONS = {
    "cosine_with_restarts": {"num_cycles": 3},
    "cosine_with_min_lr": {"min_lr_rate": 0.2},
    "polynomial": {"power": 2.0, "lr_end": 0.01},
}


def test_every_schedule_of_the_schema_has_its_formula_here():
    assert sorted([*FORMULAS, "constant"]) == sorted(names_in(schema.Schedule))


@pytest.mark.parametrize("name", FORMULAS)
def test_after_warm_up_a_schedule_follows_its_formula(name):
    found = lrs({"name": name, **OPTIONS.get(name, {})}, WARMUP, TOTAL)
    assert found[:WARMUP] == pytest.approx([step / WARMUP for step in range(WARMUP)])
    assert found[WARMUP:] == pytest.approx([FORMULAS[name](step) for step in range(WARMUP, TOTAL)])


@pytest.mark.parametrize("name", [*FORMULAS, "constant"])
def test_every_schedule_runs_without_warm_up_and_starts_at_the_peak(name):
    found = lrs({"name": name, **OPTIONS.get(name, {})}, 0, TOTAL, lr=0.5)
    assert found[0] == pytest.approx(0.5)
    assert max(found) == pytest.approx(0.5)
    assert min(found) >= 0


def test_constant_stays():
    assert lrs("constant", 0, TOTAL, lr=0.3) == [0.3] * TOTAL


def test_an_end_above_the_peak_is_a_users_mistake():
    with pytest.raises(UserError, match=r"train\.schedule: .*lr_end"):
        lrs({"name": "polynomial", "lr_end": 2.0}, 0, TOTAL)


@pytest.mark.parametrize("name", [*FORMULAS, "constant"])
def test_a_schedule_goes_on_from_its_saved_state(name):
    train = train_of(lr=1.0, optimizer="sgd", schedule={"name": name, **OPTIONS.get(name, {})})
    warmup = 0 if name == "constant" else WARMUP

    def begin():
        optimizer = build_optimizer(small_model(), train)
        return optimizer, build_schedule(optimizer, train.schedule, warmup, TOTAL)

    def walk(optimizer, course, steps):
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            course.step()
        return found

    whole = walk(*begin(), TOTAL)
    optimizer, course = begin()
    walk(optimizer, course, 8)
    twin, other = begin()
    twin.load_state_dict(optimizer.state_dict())
    load_schedule_state(other, schedule_state(course))
    assert walk(twin, other, TOTAL - 8) == whole[8:]
