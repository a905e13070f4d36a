"""`strategy: auto`: the least complicated that fits, with the reason; and warnings about what does not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest

from launch import strategy_choice as module
from launch.gpu_memory import Sizes
from launch.strategies.base import Shape
from launch.strategy_choice import Choice, choose
from tests.launch.conftest import make_recipe

GB = 10**9
BILLION = Sizes(all=10**9, trained=10**9, largest_layer=3 * 10**7, outside=10**8)
ADAPTED = Sizes(all=10**9, trained=10**6, largest_layer=3 * 10**7, outside=10**8)


@pytest.fixture(autouse=True)
def known_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"/models/billion": BILLION, "/models/adapted": ADAPTED}
    monkeypatch.setattr(module, "sizes_of", lambda recipe: sizes.get(recipe.model.path))


def chosen(
    gpu_gb: int | None,
    processes: int = 8,
    path: str = "/models/billion",
    deepspeed: bool = True,
    on_gpu: bool = True,
    **changes: Any,
) -> Choice:
    recipe = make_recipe(model={"path": path}, **changes)
    return choose(recipe, Shape(1, processes, on_gpu), gpu_gb * GB if gpu_gb else None, deepspeed)


def test_the_least_complicated_that_fits_is_taken() -> None:
    names = [chosen(gpu_gb).strategy for gpu_gb in (80, 27, 12, 6, 3)]
    assert [one["name"] for one in names] == ["ddp", "ddp", "zero2", "fsdp2", "fsdp2"]
    assert [one.get("offload") for one in names] == [None, None, None, "none", "cpu"]


def test_the_reason_says_how_much_is_needed_and_what_is_there() -> None:
    assert chosen(80).why == (
        "there are 8 processes, and each needs about 20 GB; a GPU has 80 GB, of which 25% is left to activations"
    )
    assert chosen(12).why == (
        "there are 8 processes, and each needs about 6.0 GB, with ddp 20 GB; a GPU has 12 GB, of which 25% is left to activations"
    )


def test_a_model_that_every_process_of_a_node_cannot_hold_is_warned_about() -> None:
    recipe = make_recipe(model={"path": "/models/billion"}, train={"strategy": "fsdp2"})
    (warning,) = choose(recipe, Shape(1, 8, True), 80 * GB, True, node_memory=31 * GB).warnings
    assert warning.startswith("a node's own memory may not be enough: 8 processes read 4.0 GB")
    assert "32 GB together, and a node has 31 GB" in warning
    assert choose(recipe, Shape(1, 8, True), 80 * GB, True, node_memory=33 * GB).warnings == ()


def test_without_deepspeed_fsdp2_stands_in() -> None:
    assert chosen(12, deepspeed=False).strategy["name"] == "fsdp2"


def test_what_a_strategy_cannot_do_is_passed_over() -> None:
    assert chosen(6, train={"precision": "fp16"}).strategy["name"] != "fsdp2"
    assert chosen(12, train={"optimizer": "adafactor"}).strategy["name"] == "ddp"
    fp16 = {"precision": "fp16"}
    assert chosen(3, train=fp16).strategy["name"] == "zero3"
    assert chosen(3, train={**fp16, "compile": True}).strategy["name"] == "zero2"


def test_one_process_shares_with_nobody_but_may_offload() -> None:
    assert chosen(80, processes=1).strategy == {"name": "single"}
    assert chosen(12, processes=1).strategy == {"name": "fsdp2", "offload": "cpu", "reshard_after_forward": True}


def test_adapters_need_little_more_than_the_weights() -> None:
    assert chosen(6, path="/models/adapted", tuning="lora").strategy["name"] == "ddp"


@pytest.mark.parametrize(("gpu_gb", "path", "unknown"), [(None, "/models/billion", "memory"), (80, "org/name", "size")])
def test_what_is_not_known_is_said_and_ddp_is_taken(gpu_gb: int | None, path: str, unknown: str) -> None:
    found = chosen(gpu_gb, path=path)
    assert found.strategy["name"] == "ddp"
    assert re.search(rf"{unknown} is not known", found.why)
    assert found.warnings == ()


def test_on_a_cpu_nothing_is_estimated() -> None:
    assert chosen(None, processes=2, on_gpu=False) == Choice({"name": "ddp"}, "there are 2 processes")
    assert chosen(None, processes=1, on_gpu=False) == Choice({"name": "single"}, "there is one process")


def test_what_is_asked_for_is_taken_with_a_warning_when_it_looks_too_large() -> None:
    found = chosen(12, train={"strategy": "ddp"})
    assert (found.strategy["name"], found.why) == ("ddp", "the recipe says so")
    assert found.warnings == (
        "memory may not be enough: ddp needs about 20 GB a GPU before activations, and a GPU has 12 GB; "
        "train.strategy: zero2 would fit",
    )
    assert chosen(80, train={"strategy": "ddp"}).warnings == ()


def test_when_nothing_fits_the_warning_names_what_would() -> None:
    (warning,) = chosen(8, processes=2, train={"optimizer": "adafactor"}).warnings
    assert "tuning: lora or a smaller model" in warning
    (warning,) = chosen(2, processes=2, train={"strategy": "fsdp2"}).warnings
    assert "train.strategy: fsdp2, offloaded, would fit" in warning
