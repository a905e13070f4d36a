"""Every stage of ZeRO, for real on 2 CPU processes, does what whole weights on every rank do: losses, gradient norms,
weights and saved state."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sft_dist.checkpoints.optimizer_state import SavedState, split_key
from sft_dist.engines.base import Setup
from sft_dist.engines.zero import LossScale
from tests.sft_dist.engines.curves import OPTIMIZERS, Case, Curve, batch, build, engine_of, loss_of, train
from tests.sft_dist.engines.ranks import on_ranks

pytestmark = pytest.mark.slow

DDP: dict[str, Any] = {"name": "ddp"}
ZERO1, ZERO2, ZERO3 = ({"name": name} for name in ("zero1", "zero2", "zero3"))
CPU = {"offload_optimizer": "cpu"}
BOTH_CPU = {**CPU, "offload_parameters": "cpu"}

# fp32 sums in another order: a loss near 1 is off by a few of its last bits. Everything that is not one sum's order
# (a gradient twice, a share missing, another clipping) shows in the first digits.
CLOSE = {"fp32": 1e-5, "bf16": 5e-3, "fp16": 1e-3}

CASES = {
    **{f"{stage['name']}": Case(stage, accumulation=2) for stage in (ZERO1, ZERO2, ZERO3)},
    **{f"{stage['name']} offload": Case({**stage, **CPU}, accumulation=2) for stage in (ZERO1, ZERO2)},
    "zero3 offload": Case({**ZERO3, **BOTH_CPU}, accumulation=2),
    "zero1 no clipping": Case(ZERO1, clip_norm=None, steps=6),
    "zero3 no clipping": Case(ZERO3, clip_norm=None, steps=6),
    "zero2 sgd": Case(ZERO2, optimizer="sgd", steps=6),
    "zero3 fused": Case(ZERO3, optimizer="fused", steps=6),
    **{f"zero1 {model}": Case(ZERO1, model, steps=6) for model in ("lora", "frozen")},
    **{f"zero2 {model}": Case(ZERO2, model, steps=6) for model in ("lora", "frozen", "bias", "gpt2")},
    **{
        f"zero3 {model}": Case(ZERO3, model, steps=6, accumulation=2)
        for model in ("lora", "dora", "frozen", "bias", "gpt2", "albert", "checkpointed")
    },
    "zero3 lora offload": Case({**ZERO3, **BOTH_CPU}, "lora", steps=6),
    **{
        f"{stage['name']} bad step": Case(stage, accumulation=2, steps=7, bad_step=4) for stage in (ZERO1, ZERO2, ZERO3)
    },
    "zero2 offload bad step": Case({**ZERO2, **CPU}, steps=7, bad_step=4),
    "zero3 offload bad step": Case({**ZERO3, **CPU}, steps=7, bad_step=4),
    "zero2 bf16": Case(ZERO2, precision="bf16"),
    "zero3 bf16": Case(ZERO3, precision="bf16", accumulation=2),
    "zero2 fp16": Case(ZERO2, precision="fp16", steps=20),  # the first steps overflow and are left out
    "zero3 fp16": Case({**ZERO3, **CPU}, precision="fp16", steps=20, accumulation=2),
}
ALONE = {f"{stage['name']} alone": Case(stage, accumulation=2) for stage in (ZERO1, ZERO2, ZERO3)}


def reference(case: Case) -> Case:
    return replace(case, strategy=DDP, accumulation=1)


def small_limits() -> None:
    """Of the tests' small models DeepSpeed would keep every weight whole, in one bucket and one group; with limits this
    low it partitions, splits and prefetches as it does with large ones."""
    from sft_dist.engines import zero
    from sft_dist.engines.deepspeed_config import deepspeed_config

    def small(strategy: Any, precision: str) -> dict[str, Any]:
        config = deepspeed_config(strategy, precision)
        limits = {"reduce_bucket_size": 3000, "allgather_bucket_size": 3000}
        if strategy["name"] == "zero3":
            limits |= {
                "stage3_param_persistence_threshold": 20,
                "sub_group_size": 2000,
                "stage3_prefetch_bucket_size": 3000,
            }
        config["zero_optimization"] |= limits
        return config

    zero.deepspeed_config = small


def train_all(cases: list[Case]) -> list[Curve | str]:
    """One after the other in the same processes, of which starting is the slow part. An error is returned as text."""
    small_limits()
    found: list[Curve | str] = []
    for case in cases:
        try:
            found.append(train(case))
        except Exception:
            found.append(traceback.format_exc())
    return found


def curves(world_size: int, cases: list[Case]) -> list[Any]:
    return on_ranks(world_size, train_all, cases, timeout_s=500)[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def of_one_rank() -> tuple[dict[str, Any], dict[str, Any]]:
    """Name -> the curve with whole weights, of every case; name -> the curve of ZeRO, of ALONE. Cases that differ in
    strategy only share a curve with whole weights."""
    wanted = {name: reference(case) for name, case in {**CASES, **ALONE}.items()}
    distinct = list({repr(case): case for case in wanted.values()}.values())
    trained = curves(1, [*distinct, *ALONE.values()])
    whole = dict(zip(map(repr, distinct), trained, strict=False))
    alone = dict(zip(ALONE, trained[len(distinct) :], strict=True))
    return {name: whole[repr(case)] for name, case in wanted.items()}, alone


@pytest.fixture(scope="module")
def expected(of_one_rank: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return of_one_rank[0]


@pytest.fixture(scope="module")
def found(of_one_rank: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return {**dict(zip(CASES, curves(2, list(CASES.values())), strict=True)), **of_one_rank[1]}


def assert_same(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    for curve in (one, other):
        assert isinstance(curve, Curve), curve
    assert one.losses == pytest.approx(other.losses, abs=tolerance)
    assert one.norms == pytest.approx(other.norms, abs=tolerance)
    assert list(one.weights) == list(other.weights)
    for name, weight in one.weights.items():
        assert weight.dtype == other.weights[name].dtype
        assert (weight - other.weights[name]).abs().max() <= tolerance, name


@pytest.mark.parametrize("name", [*CASES, *ALONE])
def test_same_curve_and_weights_as_without_sharing(name: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert_same(found[name], expected[name], CLOSE[{**CASES, **ALONE}[name].precision])
    assert found[name].wrapper == "DeepSpeedEngine"


def test_fp16_is_trained_with_sound_gradients(found: dict[str, Any]) -> None:
    for name in ("zero2 fp16", "zero3 fp16"):
        norms = torch.tensor(found[name].norms)
        assert norms[5:].isfinite().all()  # in the first steps the scale may still be too large
        assert norms[5:].max() < 100  # the scale is taken out again


def test_the_loss_scale_is_halved_after_an_overflow_and_doubled_after_2000_good_steps() -> None:
    scale = LossScale()
    assert [scale.update(overflow) for overflow in (True, True, False)] == [32768, 16384, 16384]
    assert [scale.update(False) for _ in range(1999)][-2:] == [16384, 32768]


# ── saved state ─────────────────────────────────────────────────────────────────────────────────────────────────────
SAVED_BY = {
    "ddp": (1, DDP),
    "zero1": (2, {**ZERO1, **CPU}),
    "zero2": (2, ZERO2),
    "zero3": (2, ZERO3),
}
GOES_ON = [
    ("zero2", 1, DDP),
    ("zero3", 1, DDP),
    ("zero1", 1, ZERO3),
    ("zero2", 1, ZERO2),
    ("zero1", 2, ZERO2),
    ("zero2", 2, ZERO3),
    ("zero3", 2, {**ZERO2, **CPU}),
    ("ddp", 2, ZERO1),
    ("ddp", 2, {**ZERO3, **BOTH_CPU}),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each that saves, after 8 steps."""
    folder = tmp_path_factory.mktemp("saved")
    for world in (1, 2):
        cases = []
        for name, (size, strategy) in SAVED_BY.items():
            if size == world:
                (folder / name).mkdir()
                cases.append(Case(strategy, steps=8, save_to=folder / name))
        for curve in curves(world, cases):
            assert isinstance(curve, Curve), curve
    return folder


@pytest.fixture(scope="module")
def gone_on(saved: Path) -> dict[str, Any]:
    found = {"uninterrupted": curves(1, [Case(DDP, steps=14)])[0]}
    for world in (1, 2):
        mine = [one for one in GOES_ON if one[1] == world]
        cases = [Case(strategy, start=8, steps=6, resume_from=saved / writer) for writer, _, strategy in mine]
        found |= dict(zip(map(str, mine), curves(world, cases), strict=True))
    return found


@pytest.mark.parametrize("one", GOES_ON, ids=lambda one: f"{one[0]}-{one[2]['name']}x{one[1]}")
def test_any_strategy_goes_on_from_any_other(one: tuple[Any, ...], gone_on: dict[str, Any]) -> None:
    got, whole = gone_on[str(one)], gone_on["uninterrupted"]
    assert isinstance(got, Curve), got
    assert got.losses == pytest.approx(whole.losses[8:], abs=1e-6)
    assert got.norms == pytest.approx(whole.norms[8:], abs=1e-6)
    for name, weight in got.weights.items():
        assert (weight - whole.weights[name]).abs().max() <= 1e-6, name


@pytest.mark.parametrize("writer", ["zero1", "zero2", "zero3"])
def test_each_element_is_saved_exactly_once(writer: str, saved: Path) -> None:
    with SavedState(saved / writer / "state") as state, SavedState(saved / "ddp" / "state") as whole:
        assert state.names() == whole.names()
        for name in whole.names():
            assert state.element_keys(name) == whole.element_keys(name) == {"exp_avg", "exp_avg_sq"}
            assert state.full_value(name, "step") == whole.full_value(name, "step") == 8
    elements: dict[str, list[int]] = {}
    for file in sorted((saved / writer / "state").glob("rank-*")):
        for key, values in load_file(file).items():
            name, state_key, first = split_key(key)
            if first is not None:
                elements.setdefault(f"{name}/{state_key}", []).extend(range(first, first + len(values)))
    for key, values in load_file(saved / "ddp" / "state" / "rank-00000.safetensors").items():
        if key.endswith("@0"):
            assert sorted(elements[key.removesuffix("@0")]) == list(range(len(values)))


# ── single things ───────────────────────────────────────────────────────────────────────────────────────────────────
def train_dropping(strategies: list[dict[str, Any]], dropped: set[int]) -> list[list[float]]:
    """Losses of 6 steps with accumulation 2, of which the `dropped` ones change nothing."""
    small_limits()
    found = []
    for strategy in strategies:
        engine = engine_of(strategy["name"])(Setup("fp32", "", strategy))
        engine.prepare(build("bert"), OPTIMIZERS["adamw"])
        rank, world = engine.accelerator.process_index, engine.accelerator.num_processes
        losses = []
        for step in range(6):
            ids, targets = batch(step)
            total = torch.zeros(())
            for turn, part in enumerate(torch.arange(len(ids)).tensor_split(2 * world)[2 * rank : 2 * rank + 2]):
                with engine.accumulate(last=turn == 1):
                    loss = loss_of(engine.model(input_ids=ids[part]).logits, ids[part], targets[part])
                    engine.backward(loss * world / len(ids))
                total += loss.detach() / len(ids)
            losses.append(engine.accelerator.reduce(total, "sum").item())
            if step in dropped:
                engine.discard_gradients()
            else:
                engine.step(1.0)
        found.append(losses)
    return found


def test_dropped_gradients_change_nothing() -> None:
    expected, never = (on_ranks(1, train_dropping, [DDP], dropped)[0][0] for dropped in ({1, 3}, set()))
    strategies = [ZERO1, ZERO2, ZERO3, {**ZERO1, **CPU}, {**ZERO2, **CPU}, {**ZERO3, **CPU}]
    for losses in on_ranks(2, train_dropping, strategies, {1, 3}, timeout_s=500)[0]:
        assert losses == pytest.approx(expected, abs=1e-5)
    assert never != pytest.approx(expected, abs=1e-3)


def held() -> dict[str, Any]:
    """What one rank of a stage 3 run has between two steps."""
    small_limits()
    engine = engine_of("zero3")(Setup("fp32", "", ZERO3))
    model = build("bert")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    engine.prepare(model, OPTIMIZERS["adamw"])
    weights = engine.weights({"classifier.weight", "bert.embeddings.word_embeddings.weight"})
    return {
        "sizes": sizes,
        "whole": {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.numel() > 20},
        "mine": {name: parameter.ds_tensor.numel() for name, parameter in model.named_parameters()},  # type: ignore[attr-defined]
        "asked": None if weights is None else {name: list(weight.shape) for name, weight in weights.items()},
    }


def test_stage_3_partitions_and_gathers_only_what_is_asked_for() -> None:
    first, second = on_ranks(2, held)
    assert not first["whole"]
    assert not second["whole"]
    for rank in (first, second):
        assert rank["mine"] == {name: -(-size // 2) for name, size in rank["sizes"].items()}
    assert first["asked"] == {"bert.embeddings.word_embeddings.weight": [61, 18], "classifier.weight": [3, 18]}
    assert second["asked"] is None


def wrong_wiring() -> str:
    """DeepSpeed in stage 1 where stage 2 was asked for."""
    from sft_dist.engines import zero

    configured = zero.deepspeed_config
    zero.deepspeed_config = lambda strategy, precision: configured({**strategy, "name": "zero1"}, precision)
    engine = zero.Zero(Setup("fp32", "", ZERO2))
    with pytest.raises(RuntimeError) as error:
        engine.prepare(build("bert"), OPTIMIZERS["adamw"])
    return str(error.value)


def test_another_stage_than_asked_for_is_an_error() -> None:
    assert on_ranks(1, wrong_wiring) == ["DeepSpeed: the ZeRO stage should be 2 but is 1"]
