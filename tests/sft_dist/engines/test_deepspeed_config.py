"""DeepSpeed's configuration, as it is handed over: one golden file for every stage, offload and precision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from sft_dist.engines.deepspeed_config import deepspeed_config
from sft_dist.recipe.schema import StrategySettings

GOLDEN = Path(__file__).parents[2] / "golden" / "deepspeed"

STRATEGIES = {
    "zero1": {"name": "zero1"},
    "zero1-cpu": {"name": "zero1", "offload_optimizer": "cpu"},
    "zero2": {"name": "zero2"},
    "zero2-cpu": {"name": "zero2", "offload_optimizer": "cpu"},
    "zero3": {"name": "zero3"},
    "zero3-cpu": {"name": "zero3", "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    "zero3-cpu-weights": {"name": "zero3", "offload_parameters": "cpu"},
    "zero3-nvme": {"name": "zero3", "offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": "/fast"},
}


def config_of(strategy: str, precision: str) -> dict[str, object]:
    options = TypeAdapter(StrategySettings).validate_python(STRATEGIES[strategy]).model_dump()
    return deepspeed_config(options, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_golden(strategy: str, precision: str) -> None:
    file = GOLDEN / f"{strategy}-{precision}.json"
    assert json.dumps(config_of(strategy, precision), indent=2) + "\n" == file.read_text(encoding="utf-8")


def test_every_golden_file_is_compared() -> None:
    expected = {f"{strategy}-{precision}.json" for strategy in STRATEGIES for precision in ("fp32", "bf16", "fp16")}
    assert {path.name for path in GOLDEN.iterdir()} == expected


def test_deepspeed_knows_every_key() -> None:
    """It ignores what it does not know at the top, so a misspelt key would be a silent default."""
    constants = pytest.importorskip("deepspeed.runtime.constants")
    zero_config = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    known = {value for value in vars(constants).values() if isinstance(value, str)} | {"zero_optimization"}
    fields = set(zero_config.model_fields) | {field.alias for field in zero_config.model_fields.values()}
    for strategy in STRATEGIES:
        config = config_of(strategy, "bf16")
        assert set(config) <= known
        assert set(config["zero_optimization"]) <= fields  # type: ignore[call-overload]
