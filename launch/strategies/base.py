"""What a strategy is told and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """The processes a run gets."""

    nodes: int
    processes_per_node: int
    on_gpu: bool

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class Launch:
    """Flags for `accelerate launch`, and environment variables that have to go with them."""

    flags: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


def one_process(shape: Shape) -> Launch:
    if shape.on_gpu:
        return Launch(("--num_processes", "1", "--gpu_ids", "all", *_settled(shape)))
    return Launch(("--cpu", "--num_processes", "1", *_settled(shape)))


def several_processes(shape: Shape) -> Launch:
    """On CPU the flag is `--multi_gpu` as well: Accelerate 1.15 starts ONE process for `--cpu --num_processes 2`, without
    an error, and only `--multi_gpu` goes through torchrun. ACCELERATE_USE_CPU then makes the processes use gloo."""
    flags = ("--multi_gpu", "--num_processes", str(shape.world_size), "--gpu_ids", "all", *_settled(shape))
    if shape.nodes == 1:
        flags += ("--machine_rank", "0", "--main_process_port", "0")  # 0: any free port, so that two runs do not meet
    else:
        flags += (
            "--rdzv_backend",
            "static",
        )  # ranks follow the nodes' order; who is who and where, the job script says
    return Launch(flags, {} if shape.on_gpu else {"ACCELERATE_USE_CPU": "true"})


def _settled(shape: Shape) -> tuple[str, ...]:
    """Said in every launch: what is left out, Accelerate would take from
    ~/.cache/huggingface/accelerate/default_config.yaml or guess. Precision and compilation are the trainer's business,
    so both are off here."""
    return ("--num_machines", str(shape.nodes), "--mixed_precision", "no", "--dynamo_backend", "no")
