"""Processes share weights, gradients and optimizer state (PyTorch's `fully_shard`).

Started like `ddp`: Accelerate's own FSDP flags do nothing on a CPU, so the trainer shares the weights out by itself. One
process is enough, which makes sense with `offload: cpu`.
"""

from __future__ import annotations

from launch.strategies.base import Launch, Shape, one_process, several_processes


def fsdp2(shape: Shape) -> Launch:
    return one_process(shape) if shape.world_size == 1 else several_processes(shape)
