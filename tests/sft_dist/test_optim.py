"""Optimizers and schedules: every one the schema offers is built, steps, and follows its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from sft_dist.optim import (
    OPTIMIZERS,
    build_optimizer,
    build_schedule,
    load_schedule_state,
    schedule_state,
    trained_names,
)
from sft_dist.recipe import schema
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Train


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
def test_the_table_has_every_optimizer_of_the_schema():
    assert sorted(OPTIMIZERS) == sorted(names_in(schema.Optimizer))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_lowers_a_loss(name):
    model = small_model()
    optimizer = build_optimizer(model, train_of(lr=0.05, optimizer=name))

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(torch.arange(10)), torch.arange(10) % 2)

    before = loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before - 0.05


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
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


def test_names_stand_in_the_order_of_the_optimizers_state():
    model = small_model()
    optimizer = build_optimizer(model, train_of())
    by_id = {id(p): name for name, p in model.named_parameters()}
    order = [by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert trained_names(model) == order


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"name": "adamw", "betas": [0.8, 0.95], "eps": 1e-6}, {"betas": (0.8, 0.95), "eps": 1e-6}),
        ({"name": "adam", "betas": [0.7, 0.9]}, {"betas": (0.7, 0.9), "weight_decay": 0.0}),
        ({"name": "sgd", "momentum": 0.5, "nesterov": True}, {"momentum": 0.5, "nesterov": True}),
        ({"name": "sgd"}, {"momentum": 0.9, "nesterov": False}),
        ({"name": "adafactor", "weight_decay": 0.2}, {"weight_decay": 0.2, "lr": 0.01}),
    ],
)
def test_options_reach_the_optimizer(settings, options):
    group = build_optimizer(small_model(), train_of(optimizer=settings)).param_groups[0]
    assert {key: group[key] for key in options} == options


def test_options_that_exclude_each_other_are_a_users_mistake():
    with pytest.raises(UserError, match=r"train\.optimizer: .*momentum"):
        build_optimizer(small_model(), train_of(optimizer={"name": "sgd", "momentum": 0.0, "nesterov": True}))


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
