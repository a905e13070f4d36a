"""DeepSpeed's configuration for a strategy of the recipe. Pure and torch-free, so that it can be shown and tested anywhere.

The batch size in it is a formality (one example, no accumulation, whatever the recipe says): the loop does that
arithmetic, and the configuration is the same on any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft_dist.recipe.strategies import STRATEGIES

AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


def zero_stage(strategy: Mapping[str, object]) -> int:
    """Returns 1 where ranks shard the optimizer state, 2 for gradients too, 3 for parameters too."""
    return len(STRATEGIES[str(strategy["name"])].shards)


def deepspeed_config(strategy: Mapping[str, object], precision: str) -> dict[str, Any]:
    """Returns the config for `strategy`, its name and options as in the recipe. The keys are those of
    https://www.deepspeed.ai/docs/config-json/."""
    stage = zero_stage(strategy)
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,  # one order of work, so that a run can be repeated to the bit
        "contiguous_gradients": True,
        "reduce_bucket_size": 50_000_000,  # elements; DeepSpeed's own 500 million take 2 GB on every GPU
        "allgather_bucket_size": 50_000_000,
    }
    if optimizer := _offload(strategy, "offload_optimizer"):
        zero["offload_optimizer"] = optimizer
    if parameters := _offload(strategy, "offload_parameters"):
        zero["offload_param"] = parameters
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": None,
        # PyTorch's own optimizers, also on offloaded state: DeepSpeed's would need a compiler on every node.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    if dtype := AUTOCAST.get(precision):
        # Weights stay fp32, as under every strategy. No layer is listed as safe: the listed ones would exchange gathered
        # weights and gradients in 16 bits, and results would depend on the number of processes.
        config["torch_autocast"] = {"enabled": True, "dtype": dtype, "lower_precision_safe_modules": []}
    return config


def _offload(strategy: Mapping[str, object], option: str) -> dict[str, Any] | None:
    device = strategy.get(option, "none")
    if device == "none":
        return None
    path = {"nvme_path": strategy["nvme_path"]} if device == "nvme" else {}
    return {"device": device, "pin_memory": True, **path}
