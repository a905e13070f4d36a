"""Every stage of ZeRO, for real on 2 CPU processes, does what whole weights on every rank do: losses, gradient norms,
weights and saved state."""

from __future__ import annotations

from typing import Any

from tests.sft_dist.engines.curves import Case, Curve, train
from tests.sft_dist.engines.ranks import on_ranks

CPU = {"offload_optimizer": "cpu"}


def train_small(case: Case) -> Curve:
    """On the tests' small models DeepSpeed would keep every weight whole and need one bucket and one group; here the
    limits are so low that it partitions, splits and prefetches as it does with large ones."""
    from sft_dist.engines import zero

    configured = zero.deepspeed_config

    def small(strategy: Any, precision: str) -> dict[str, Any]:
        config = configured(strategy, precision)
        limits = {"reduce_bucket_size": 500, "allgather_bucket_size": 500}
        if strategy["name"] == "zero3":
            limits |= {"stage3_param_persistence_threshold": 20, "sub_group_size": 700, "stage3_prefetch_bucket_size": 900}
        config["zero_optimization"] |= limits
        return config

    zero.deepspeed_config = small
    return train(case)
