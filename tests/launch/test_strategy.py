"""How the processes of each strategy are started; `strategy: auto`: the least complicated one that fits, with the reason; and
warnings about what does not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest

from launch import strategy as module
from launch.gpu_memory import Sizes, SizesUnknown
from launch.strategy import Shape, StrategyChoice, accelerate_launch, choose
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.strategies import STRATEGIES, Strategy
from tests.launch.conftest import make_recipe

GB = 10**9
BILLION = Sizes(all=10**9, trained=10**9, largest_layer=3 * 10**7, outside=10**8)
ADAPTED = Sizes(all=10**9, trained=10**6, largest_layer=3 * 10**7, outside=10**8)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_started_like_ddp_and_never_by_accelerates_own_deepspeed(name: str) -> None:
    shape = Shape(nodes=1, processes_per_node=2, on_gpu=False)
    launch, ddp = accelerate_launch(name, shape), accelerate_launch("ddp", shape)
    assert launch.flags == ddp.flags
    assert launch.env == {**ddp.env, "DS_ACCELERATOR": "cpu"}


def test_one_process_is_enough() -> None:
    shape = Shape(nodes=1, processes_per_node=1, on_gpu=True)
    assert accelerate_launch("zero3", shape) == accelerate_launch("single", shape)


def test_on_gpus_deepspeed_finds_them_itself() -> None:
    assert accelerate_launch("zero2", Shape(nodes=2, processes_per_node=4, on_gpu=True)).env == {}


def test_every_strategy_is_started_with_the_processes_it_can_have() -> None:
    one, two = Shape(1, 1, on_gpu=False), Shape(1, 2, on_gpu=False)
    for name in STRATEGIES:
        for shape in (one, two):
            if (name, shape.world_size) in (("single", 2), ("ddp", 1)):
                with pytest.raises(UserError) as error:
                    accelerate_launch(name, shape)
                (problem,) = error.value.problems
                assert problem.valid == ("auto", "ddp" if name == "single" else "single")
            else:
                assert "--num_processes" in accelerate_launch(name, shape).flags


@pytest.fixture(autouse=True)
def fixed_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"/models/billion": BILLION, "/models/adapted": ADAPTED}

    def sizes_of(recipe: Recipe) -> Sizes:
        if recipe.model.path not in sizes:
            raise SizesUnknown("the hub did not answer within 5 s")
        return sizes[recipe.model.path]

    monkeypatch.setattr(module, "sizes_of", sizes_of)


def choice_of(
    gpu_gb: int | None,
    processes: int = 8,
    path: str = "/models/billion",
    deepspeed: bool = True,
    on_gpu: bool = True,
    **changes: Any,
) -> StrategyChoice:
    recipe = make_recipe(model={"path": path}, **changes)
    shape = Shape(1, processes, on_gpu)
    return choose(recipe, shape, gpu_gb * GB if gpu_gb else None, all_packages if deepspeed else no_packages)


def all_packages(row: Strategy) -> bool:
    return True


def no_packages(row: Strategy) -> bool:
    return not row.packages


def test_the_least_complicated_that_fits_is_taken() -> None:
    strategies = [choice_of(gpu_gb).strategy for gpu_gb in (80, 27, 12, 6, 3)]
    assert [strategy["name"] for strategy in strategies] == ["ddp", "ddp", "zero2", "fsdp2", "fsdp2"]
    assert [strategy.get("offload") for strategy in strategies] == [None, None, None, "none", "cpu"]


def test_the_reason_says_how_much_is_needed_and_what_is_there() -> None:
    assert choice_of(80).reason == (
        "there are 8 processes, and each needs about 20 GB; a GPU has 80 GB, of which 25% is reserved for activations"
    )
    assert choice_of(12).reason == (
        "there are 8 processes, and each needs about 6.0 GB, with ddp 20 GB; a GPU has 12 GB, of which 25% is reserved for activations"
    )


def test_a_model_that_every_process_of_a_node_cannot_hold_is_warned_about() -> None:
    recipe = make_recipe(model={"path": "/models/billion"}, train={"strategy": "fsdp2"})
    (warning,) = choose(recipe, Shape(1, 8, True), 80 * GB, all_packages, node_memory=31 * GB).warnings
    assert warning.startswith("a node's main memory may not be enough: 8 processes read 4.0 GB")
    assert "32 GB together, but a node has 31 GB" in warning
    assert choose(recipe, Shape(1, 8, True), 80 * GB, all_packages, node_memory=33 * GB).warnings == ()


def test_without_deepspeed_fsdp2_stands_in() -> None:
    assert choice_of(12, deepspeed=False).strategy["name"] == "fsdp2"


def test_what_a_strategy_cannot_do_is_passed_over() -> None:
    assert choice_of(6, train={"precision": "fp16"}).strategy["name"] != "fsdp2"
    assert choice_of(12, train={"optimizer": "adafactor"}).strategy["name"] == "ddp"
    fp16 = {"precision": "fp16"}
    assert choice_of(3, train=fp16).strategy["name"] == "zero3"
    assert choice_of(3, train={**fp16, "compile": True}).strategy["name"] == "zero2"


def test_one_process_shares_with_nobody_but_may_offload() -> None:
    assert choice_of(80, processes=1).strategy == {"name": "single"}
    assert choice_of(12, processes=1).strategy == {"name": "fsdp2", "offload": "cpu", "reshard_after_forward": True}


def test_adapters_need_little_more_than_the_weights() -> None:
    assert choice_of(6, path="/models/adapted", tuning="lora").strategy["name"] == "ddp"


@pytest.mark.parametrize(
    ("gpu_gb", "path", "unknown"),
    [(None, "/models/billion", "memory of the GPUs is unknown"), (80, "org/name", "size of the model is unknown")],
)
def test_what_is_not_known_is_said_and_ddp_is_taken(gpu_gb: int | None, path: str, unknown: str) -> None:
    choice = choice_of(gpu_gb, path=path)
    assert choice.strategy["name"] == "ddp"
    assert re.search(unknown, choice.reason)
    assert choice.warnings == ()


def test_on_a_cpu_nothing_is_estimated() -> None:
    assert choice_of(None, processes=2, on_gpu=False) == StrategyChoice({"name": "ddp"}, "there are 2 processes")
    assert choice_of(None, processes=1, on_gpu=False) == StrategyChoice({"name": "single"}, "there is one process")


def test_what_is_asked_for_is_taken_with_a_warning_when_it_looks_too_large() -> None:
    choice = choice_of(12, train={"strategy": "ddp"})
    assert (choice.strategy["name"], choice.reason) == ("ddp", "the recipe says so")
    assert choice.warnings == (
        "memory may not be enough: ddp needs about 20 GB per GPU before activations, but a GPU has 12 GB; "
        "train.strategy: zero2 would fit",
    )
    assert choice_of(80, train={"strategy": "ddp"}).warnings == ()


def test_when_nothing_fits_the_warning_names_what_would() -> None:
    (warning,) = choice_of(8, processes=2, train={"optimizer": "adafactor"}).warnings
    assert "tuning: lora or a smaller model" in warning
    (warning,) = choice_of(2, processes=2, train={"strategy": "fsdp2"}).warnings
    assert "train.strategy: fsdp2, offloaded, would fit" in warning
