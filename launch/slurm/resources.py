"""What a run requests from Slurm: the recipe's resources on a cluster. What does not fit is refused, with the nearest value
that does, before anything is queued."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Resources
from sft_dist.recipe.units import bytes_of, seconds_of

if TYPE_CHECKING:
    from launch.slurm.clusters import Cluster

SHORTEST_WORK_S = 60  # between a job's start and Slurm's warning of its end


@dataclass(frozen=True)
class Request:
    """For each node, except `nodes` and `time_s`."""

    cluster: str
    nodes: int
    cpus: int
    gpus: int
    memory_mb: int | None
    time_s: int | None


def request_resources(resources: Resources, cluster: Cluster, processes: int) -> Request:
    """`processes` per node, checked against the node's GPUs before. Raises UserError with every problem."""
    share = processes / cluster.gpus_per_node if cluster.gpus_per_node else 1.0
    problems: list[Problem] = []
    cpus = _cpus(resources, cluster, processes, share, problems)
    memory_mb = _memory(resources, cluster, share, problems)
    time_s = _time(resources, cluster, problems)
    if problems:
        raise UserError(problems)
    return Request(cluster.name, resources.nodes, cpus, processes if cluster.gpus_per_node else 0, memory_mb, time_s)


def _cpus(resources: Resources, cluster: Cluster, processes: int, share: float, problems: list[Problem]) -> int:
    if not resources.threads_per_process:
        return max(1, math.floor(cluster.cpus_per_node * share))
    cpus = processes * resources.threads_per_process
    if cpus > cluster.cpus_per_node:
        threads = cluster.cpus_per_node // processes
        problems.append(
            Problem(
                f"{processes} processes x {resources.threads_per_process} threads need {cpus} CPUs, but a node of "
                f"{cluster.name} has {cluster.cpus_per_node}",
                "resources.threads_per_process",
                value=str(resources.threads_per_process),
                hint=_nearest(str(threads)) if threads else _nearest(f"processes_per_node: {cluster.cpus_per_node}"),
            )
        )
    return cpus


def _memory(resources: Resources, cluster: Cluster, share: float, problems: list[Problem]) -> int | None:
    node_mb = cluster.memory_mb
    if resources.memory is None:
        return math.floor(node_mb * min(1.0, share)) if node_mb else None
    memory_mb = math.ceil(bytes_of(resources.memory) / 2**20)
    if node_mb and memory_mb > node_mb:
        problems.append(
            Problem(
                f"a node of {cluster.name} has {cluster.memory_per_node}",
                "resources.memory",
                value=resources.memory,
                hint=_nearest(cluster.memory_per_node or ""),
            )
        )
    return memory_mb


def _time(resources: Resources, cluster: Cluster, problems: list[Problem]) -> int | None:
    longest_s = cluster.max_time_s
    time_s = seconds_of(resources.time) if resources.time else longest_s
    if longest_s and time_s and time_s > longest_s:
        problems.append(
            Problem(
                f"jobs on {cluster.name} end after {cluster.max_time}",
                "resources.time",
                value=resources.time,
                hint=f"{_nearest(cluster.max_time or '')}; longer runs are requeued automatically"
                if cluster.preemption.requeue
                else _nearest(cluster.max_time or ""),
            )
        )
    shortest_s = cluster.signal_lead_s + SHORTEST_WORK_S
    if time_s and time_s < shortest_s:
        problems.append(
            Problem(
                f"Slurm warns {cluster.preemption.signal_lead} before the end, so there would be no time to train",
                "resources.time",
                value=resources.time,
                hint=_nearest(f"{math.ceil(shortest_s / 60)}min"),
            )
        )
    return time_s


def _nearest(value: str) -> str:
    return f"nearest that fits: {value}"


@lru_cache(maxsize=64)
def format_time(seconds: int) -> str:
    """`1-12:00:00`, as sbatch takes a time."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}" if days else f"{hours:02d}:{minutes:02d}:{seconds:02d}"
