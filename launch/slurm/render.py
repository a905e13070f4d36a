"""Texts for people about what goes to Slurm. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch.slurm.resources import clock

if TYPE_CHECKING:
    from launch.planning import Prepared
    from launch.slurm.clusters import Cluster
    from launch.slurm.resources import Request
    from launch.slurm.submit import Divided, Part, Submission


PURPOSE = {
    "score": "scores the checkpoints of each run when training has ended",
    "eval": "chooses among all checkpoints when that has ended, tests the winner and exports it",
}


def asked_of(prepared: Sequence[Prepared], cluster: Cluster) -> str:
    """What Slurm is asked for, by kind of run."""
    asked = list(dict.fromkeys(one.plan.request for one in prepared if one.plan.request))
    lines = [f"  {'cluster':<13}{cluster.name}: {of_job(one)}" for one in asked]
    return "\n".join(lines)


def of_job(asked: Request) -> str:
    """`2 nodes, each 2 CPUs, 7,629 MiB; at most 04:00:00`."""
    parts = [f"{asked.gpus} GPUs"] if asked.gpus else []
    parts += [f"{asked.cpus} CPUs"]
    parts += [f"{asked.memory_mb:,} MiB"] if asked.memory_mb else []
    nodes = "1 node," if asked.nodes == 1 else f"{asked.nodes} nodes, each"
    return f"{nodes} {', '.join(parts)}; " + (
        f"at most {clock(asked.time_s)}" if asked.time_s else "no time limit asked"
    )


def divided(found: Divided) -> str:
    """`plan --diff`."""
    lines = []
    for name, runs in vars(found).items():
        lines.append(f"{name:<8} {len(runs):>6,}")
        lines += [f"  {one.plan.name}/{one.plan.folder.name}{_point(one)}" for one in runs[:10]]
        lines += [f"  and {len(runs) - 10:,} more"] if len(runs) > 10 else []
    return "\n".join(lines)


def divided_json(found: Divided) -> dict[str, list[str]]:
    return {name: [str(one.plan.folder) for one in runs] for name, runs in vars(found).items()}


def _point(one: Prepared) -> str:
    return "".join(f"  {key}={value}" for key, value in one.plan.point.items())


def would_submit(found: Divided, parts: Sequence[Part], parallel: int | None) -> str:
    """`submit --dry-run`."""
    lines = [_counts(found)]
    for part in parts:
        what = f"one array of {len(part.runs):,}" if part.is_array else "one job"
        cap = f", at most {parallel} at a time" if parallel and part.is_array else ""
        lines.append(f"would send {what}{cap}: {of_job(part.asked) if part.kind == 'train' else PURPOSE[part.kind]}")
    return "\n".join(lines)


def submitted(done: Submission, cluster: Cluster) -> str:
    lines = [_counts(done.divided)]
    for job, part in done.jobs:
        if part.kind != "train":
            what = PURPOSE[part.kind]
        elif part.is_array:
            what = f"{len(part.runs):,} runs as an array"
        else:
            what = f"{part.runs[0].plan.name}/{part.runs[0].plan.folder.name}"
        lines.append(f"job {job}: {what}")
    if done.jobs:
        calls = f"{len(done.jobs)} call{'s' if len(done.jobs) > 1 else ''} of sbatch"
        lines.append(f"sent to {cluster.name} with {calls}; next: sft-dist status")
    return "\n".join(lines)


def _counts(found: Divided) -> str:
    known = {"finished": found.done, "running": found.running, "waiting": found.waiting}
    old = [f"{len(runs):,} {name}" for name, runs in known.items() if runs]
    new = f"{len(found.missing):,} to send"
    return f"{new}; left alone: {', '.join(old)}" if old else new
