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


def settled(shape: Shape) -> tuple[str, ...]:
    """Said in every launch: what is left out, Accelerate would take from
    ~/.cache/huggingface/accelerate/default_config.yaml or guess. Precision and compilation are the trainer's business,
    so both are off here."""
    return ("--num_machines", str(shape.nodes), "--mixed_precision", "no", "--dynamo_backend", "no")
