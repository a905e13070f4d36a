"""What a run asks Slurm for: the recipe's resources meet the cluster. What does not fit is refused with the nearest
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
    """Of each node but for `nodes` and `time_s`."""

    cluster: str
    nodes: int
    cpus: int
    gpus: int
    memory_mb: int | None
    time_s: int | None


def request(resources: Resources, cluster: Cluster, processes: int) -> Request:
    """`processes` per node, already held against the node's GPUs. Raises UserError with every problem."""
    share = processes / cluster.gpus_per_node if cluster.gpus_per_node else 1.0
    cpus = max(1, math.floor(cluster.cpus_per_node * share))
    problems: list[Problem] = []
    if resources.threads_per_process:
        cpus = processes * resources.threads_per_process
        if cpus > cluster.cpus_per_node:
            most = cluster.cpus_per_node // processes
            problems.append(
                Problem(
                    f"{processes} processes x {resources.threads_per_process} threads need {cpus} CPUs, and a node of "
                    f"{cluster.name} has {cluster.cpus_per_node}",
                    "resources.threads_per_process",
                    value=str(resources.threads_per_process),
                    hint=_nearest(str(most)) if most else _nearest(f"processes_per_node: {cluster.cpus_per_node}"),
                )
            )
    memory_mb = _memory(resources, cluster, share, problems)
    time_s = _time(resources, cluster, problems)
    if problems:
        raise UserError(problems)
    return Request(cluster.name, resources.nodes, cpus, processes if cluster.gpus_per_node else 0, memory_mb, time_s)


def _memory(resources: Resources, cluster: Cluster, share: float, problems: list[Problem]) -> int | None:
    has = cluster.memory_mb
    if resources.memory is None:
        return math.floor(has * min(1.0, share)) if has else None
    wanted = math.ceil(bytes_of(resources.memory) / 2**20)
    if has and wanted > has:
        problems.append(
            Problem(
                f"a node of {cluster.name} has {cluster.memory_per_node}",
                "resources.memory",
                value=resources.memory,
                hint=_nearest(cluster.memory_per_node or ""),
            )
        )
    return wanted


def _time(resources: Resources, cluster: Cluster, problems: list[Problem]) -> int | None:
    most = cluster.max_time_s
    wanted = seconds_of(resources.time) if resources.time else most
    if most and wanted and wanted > most:
        problems.append(
            Problem(
                f"jobs on {cluster.name} end after {cluster.max_time}",
                "resources.time",
                value=resources.time,
                hint=f"{_nearest(cluster.max_time or '')}; a longer run goes on by itself in the queue again"
                if cluster.preemption.requeue
                else _nearest(cluster.max_time or ""),
            )
        )
    least = cluster.signal_lead_s + SHORTEST_WORK_S
    if wanted and wanted < least:
        problems.append(
            Problem(
                f"Slurm warns {cluster.preemption.signal_lead} before the end, so nothing would be trained",
                "resources.time",
                value=resources.time,
                hint=_nearest(f"{math.ceil(least / 60)}min"),
            )
        )
    return wanted


def _nearest(what: str) -> str:
    return f"nearest that fits: {what}"


@lru_cache(maxsize=64)
def clock(seconds: int) -> str:
    """`1-12:00:00`, as sbatch takes a time."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{rest:02d}" if days else f"{hours:02d}:{minutes:02d}:{rest:02d}"
