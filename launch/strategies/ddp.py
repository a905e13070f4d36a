"""Every process holds the whole model and a share of each batch (PyTorch DistributedDataParallel).

On CPU the flag is `--multi_gpu` as well: Accelerate 1.15 starts ONE process for `--cpu --num_processes 2`, without an
error, and only `--multi_gpu` goes through torchrun. ACCELERATE_USE_CPU then makes the processes use gloo.
"""

from __future__ import annotations

from launch.strategies.base import Launch, Shape, settled
from sft_dist.recipe.errors import Problem, UserError


def ddp(shape: Shape) -> Launch:
    """Raises UserError when there is only one process: `accelerate launch --multi_gpu` refuses it."""
    if shape.world_size < 2:
        raise UserError(
            Problem(
                "strategy `ddp` shares work between processes, and one is planned",
                path="train.strategy",
                found="ddp",
                valid=("auto", "single"),
                hint="or set resources.processes_per_node: 2",
            )
        )
    flags = ("--multi_gpu", "--num_processes", str(shape.world_size), "--gpu_ids", "all", *settled(shape))
    if shape.nodes == 1:
        flags += ("--machine_rank", "0", "--main_process_port", "0")  # 0: any free port, so that two runs do not meet
    else:
        flags += (
            "--rdzv_backend",
            "static",
        )  # ranks follow the nodes' order; who is who and where, the job script says
    return Launch(flags, {} if shape.on_gpu else {"ACCELERATE_USE_CPU": "true"})
