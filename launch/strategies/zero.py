"""DeepSpeed's ZeRO: processes share the optimizer's state, gradients and weights.

Started like `ddp`, without Accelerate's DeepSpeed flags: the trainer drives DeepSpeed itself (`sft_dist/engines/zero.py`).
"""

from __future__ import annotations

from dataclasses import replace

from launch.strategies.base import Launch, Shape, one_process, several_processes


def zero(shape: Shape) -> Launch:
    launch = one_process(shape) if shape.world_size == 1 else several_processes(shape)
    # Without it DeepSpeed looks for a GPU first, and warns that it found none.
    return launch if shape.on_gpu else replace(launch, env={**launch.env, "DS_ACCELERATOR": "cpu"})
