"""What a kind of tuning can be combined with: known before anything starts, said with the reason, and in the docs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import get_args

import pytest

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import load
from sft_dist.recipe.machine import missing_packages, needs_gpu
from sft_dist.recipe.schema import Fsdp2Strategy, PlainStrategy, Tuning, Zero3Strategy, ZeroStrategy
from sft_dist.recipe.strategies import STRATEGIES, tuning_refusal
from sft_dist.recipe.tunings import KINDS, best_form, export_form, has_adapter, virtual_tokens
from tests.sft_dist.recipe.recipe_texts import GOOD, write

DOCS = Path(__file__).parents[3] / "docs"


def recipe(tmp_path: Path, *overrides: str):
    return load(write(tmp_path, GOOD), list(overrides))


def said(tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        recipe(tmp_path, *overrides)
    return str(caught.value)


@pytest.mark.slow
def test_the_tables_in_the_docs_are_current() -> None:
    page = (DOCS / "strategies.md").read_text()
    current = runpy.run_path(str(DOCS / "tables.py"))["current"]
    assert "<!-- table: tunings -->" in page
    assert "<!-- table: depths -->" in page
    assert current(page) == page, "run: python docs/tables.py"


def test_every_method_and_every_strategy_is_in_the_table() -> None:
    classes = get_args(get_args(Tuning)[0])
    methods = {get_args(one.model_fields["method"].annotation)[0] for one in classes}
    assert {tuning.method for tuning in KINDS.values()} == methods
    named = [PlainStrategy, ZeroStrategy, Zero3Strategy, Fsdp2Strategy]
    names = {name for one in named for name in get_args(one.model_fields["name"].annotation)}
    assert set(STRATEGIES) == names - {"auto"}


def test_a_cell_that_does_not_work_is_refused_with_the_reason_and_what_would_work(tmp_path: Path) -> None:
    freeze = "tuning={method: freeze, train_last_layers: 1, unfreeze_every: 1 epoch}"
    text = said(tmp_path, freeze, "train.strategy=zero2")
    assert "train.strategy: not with tuning: freeze: DeepSpeed updates all trained weights as one flat tensor" in text
    assert "valid: auto, single, ddp, fsdp2" in text
    assert "4 bits" in said(tmp_path, "tuning=qlora", "train.strategy=fsdp2")
    recipe(tmp_path, freeze, "train.strategy=fsdp2")
    recipe(tmp_path, "tuning={method: freeze, train_last_layers: 1}", "train.strategy=zero2")


@pytest.mark.parametrize("tuning", ["lora", "ia3", "prefix"])
def test_layer_decay_without_trained_layers_has_no_effect(tmp_path: Path, tuning: str) -> None:
    assert "train.layer_decay: has no effect" in said(tmp_path, f"tuning={tuning}", "train.layer_decay=0.9")
    recipe(tmp_path, "tuning=full", "train.layer_decay=0.9")


def test_a_prefix_and_gradient_checkpointing_exclude_each_other(tmp_path: Path) -> None:
    text = said(tmp_path, "tuning=prefix", "train.gradient_checkpointing=true")
    assert "train.gradient_checkpointing: not with tuning: prefix" in text
    recipe(tmp_path, "tuning=prompt", "train.gradient_checkpointing=true")


@pytest.mark.parametrize("tuning", ["prefix", "prompt", "qlora"])
def test_what_cannot_be_merged_is_exported_as_an_adapter(tmp_path: Path, tuning: str) -> None:
    text = said(tmp_path, f"tuning={tuning}", "evaluate.export=merged")
    assert f"evaluate.export: tuning: {tuning} cannot be merged" in text
    assert "valid: adapter, none" in text
    assert export_form(recipe(tmp_path, f"tuning={tuning}")) == "adapter"
    assert export_form(recipe(tmp_path, f"tuning={tuning}", "evaluate.export=none")) == "none"


@pytest.mark.parametrize("tuning", ["full", "bitfit", "lora", "ia3"])
def test_the_rest_is_exported_as_one_model(tmp_path: Path, tuning: str) -> None:
    assert export_form(recipe(tmp_path, f"tuning={tuning}")) == "merged"


def test_only_adapters_lie_apart() -> None:
    apart = {tuning.method for tuning in KINDS.values() if has_adapter(tuning)}
    assert apart == {"lora", "qlora", "ia3", "prefix", "prompt"}
    assert all(best_form(tuning) == "merged" for tuning in KINDS.values() if not has_adapter(tuning))


def test_only_virtual_tokens_take_up_positions() -> None:
    assert {tuning.method: virtual_tokens(tuning) for tuning in KINDS.values() if virtual_tokens(tuning)} == {
        "prefix": 4,
        "prompt": 4,
    }


def test_plain_strategies_refuse_nothing() -> None:
    assert {tuning_refusal(strategy, tuning) for strategy in ("single", "ddp") for tuning in KINDS.values()} == {None}


def test_qlora_needs_a_gpu_and_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = recipe(tmp_path, "tuning=qlora")
    assert [(one.path, one.hint) for one in needs_gpu(found)] == [("tuning.method", "use tuning: lora")]
    monkeypatch.setattr("sft_dist.recipe.machine.is_installed", lambda module: module != "bitsandbytes")
    (problem,) = missing_packages(found)
    assert (problem.path, problem.value, problem.hint) == ("tuning.method", "qlora", "pip install 'bitsandbytes'")
    assert not needs_gpu(recipe(tmp_path, "tuning=lora"))
