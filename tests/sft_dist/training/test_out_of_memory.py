"""One change at a time: the least harmful one that fits the stage and makes a valid recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sft_dist.recipe.schema import Recipe
from sft_dist.run.failures import OutOfMemory, is_out_of_memory
from sft_dist.training.out_of_memory import FITTING, MORE_MEMORY, advice, explained, largest


def recipe(tuning="full", max_length=256, evaluate=None, **train) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "task": {"type": "text-classification"},
            "model": {"path": "/model"},
            "data": {"source": "/data.csv", "max_length": max_length},
            "tuning": {"method": tuning},
            "evaluate": evaluate or {},
            "train": {"lr": 1e-4, "global_batch": 64, **train},
        }
    )


def change(advised: str) -> str:
    """`set train.micro_batch=4 (why)` -> `train.micro_batch=4`."""
    return advised.removeprefix("set ").split(" (")[0]


def test_each_advice_leads_to_the_next_until_nothing_is_left():
    """A user who does as told, GPU and two processes, forward and backward."""
    settings: dict = {"micro_batch": 4}
    said = []
    for _ in range(12):
        advised = advice(recipe(**settings), 2, "training", on_gpu=True)
        said.append(change(advised))
        if advised == MORE_MEMORY or not said[-1].startswith("train."):
            break
        path, value = said[-1].removeprefix("train.").split("=", 1)
        values = {"true": True, "{'name': 'fsdp2'}": {"name": "fsdp2"}}
        if path == "strategy.offload":
            settings["strategy"] = {"name": "fsdp2", "offload": "cpu"}
        else:
            settings[path] = values.get(value, int(value) if value.isdigit() else value)
    assert said == [
        "train.micro_batch=2",
        "train.micro_batch=1",
        "train.gradient_checkpointing=true",
        "train.precision=bf16",
        "train.strategy={'name': 'fsdp2'}",
        "train.strategy.offload=cpu",
        "tuning={'method': 'lora'}",
    ]


@pytest.mark.parametrize(
    ("stage", "world_size", "on_gpu", "train", "expected"),
    [
        # The optimizer's step holds no activations: a smaller micro-batch would not help.
        ("updating", 2, True, {}, "train.strategy={'name': 'fsdp2'}"),
        ("updating", 2, True, {"strategy": {"name": "zero1"}}, "train.strategy={'name': 'zero2'}"),
        ("updating", 2, True, {"strategy": {"name": "zero2"}}, "train.strategy={'name': 'zero3'}"),
        ("updating", 2, True, {"strategy": {"name": "zero3"}}, "train.strategy.offload_optimizer=cpu"),
        ("updating", 1, True, {}, "tuning={'method': 'lora'}"),
        ("updating", 2, False, {"strategy": {"name": "fsdp2"}}, "tuning={'method': 'lora'}"),
        ("validating", 1, True, {}, "evaluate.micro_batch=32"),
        ("starting", 2, False, {}, "train.strategy={'name': 'fsdp2'}"),
        ("saving", 2, True, {}, MORE_MEMORY),
        # auto is 32 here, and 12 examples a process are divided by 6.
        ("training", 2, True, {"micro_batch": "auto"}, "train.micro_batch=16"),
        ("training", 2, True, {"global_batch": 24, "micro_batch": 12}, "train.micro_batch=6"),
        ("training", 1, True, {"global_batch": 7, "micro_batch": 7}, "train.micro_batch=1"),
    ],
)
def test_the_first_change_that_helps(stage, world_size, on_gpu, train, expected):
    assert change(advice(recipe(**train), world_size, stage, on_gpu)) == change(expected)


def test_adapters_with_everything_else_done_cut_the_texts():
    done = {"micro_batch": 1, "gradient_checkpointing": True, "precision": "bf16"}
    assert change(advice(recipe("lora", **done), 1, "training", True)) == "data.max_length=128"
    assert advice(recipe("lora", **done), 1, "updating", True) == MORE_MEMORY


def test_every_stage_of_the_loop_is_known():
    assert set(FITTING) == {"starting", "training", "updating", "validating", "saving"}


def test_the_largest_batch_is_the_one_with_most_padded_tokens():
    lengths = np.array([9, 2, 2, 2, 5, 5])
    assert largest(lengths, [np.array([0]), np.array([1, 2, 3]), np.array([4, 5]), np.array([], int)]) == (2, 5, 10)
    assert largest(lengths, [np.array([], int)]) == (0, 0, 0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_all_ways_to_say_it_are_understood(error):
    assert is_out_of_memory(error)
    found = explained(error, recipe(), 1, None, "starting")
    assert isinstance(found, OutOfMemory)
    assert "out of memory (starting)" in str(found)
    assert "\n" not in str(found)
    assert found.__cause__ is error


def test_other_errors_stay_what_they_are():
    error = ValueError("shapes differ")
    assert explained(error, recipe(), 1, None, "training") is error


def test_a_real_allocation_that_fails_is_told_apart_by_where_it_was_raised():
    class Engine:
        def step(self):
            torch.empty(2**60)

    step = compile("def step():\n    import torch\n    torch.empty(2**60)", "/x/sft_dist/engines/some.py", "exec")
    names: dict = {}
    exec(step, names)
    for call, stage in ((names["step"], "updating"), (Engine().step, "training")):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert f"({stage})" in str(explained(caught.value, recipe(), 1, None, "training"))
