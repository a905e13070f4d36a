"""`job.sbatch`: one run as a Slurm job. Pure: a plan and a cluster go in, the text of a bash script comes out.

The bash is in job.sbatch.tmpl. The script needs nothing of this program but the run folder it is in. Whatever comes from a
recipe or a cluster file is quoted by `shlex.quote`, or was matched against a strict pattern before it gets into an `#SBATCH`
line.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launch.run_folders import is_sealed_before_packages, wrap_arguments
from launch.slurm.resources import format_time
from launch.slurm.templates import fill

if TYPE_CHECKING:
    from launch.plan import Plan
    from launch.slurm.clusters import Cluster
    from launch.slurm.resources import Request

_SAFE = re.compile(r"[^\s\"'`$\\#;<>\x00-\x1f\x7f]+")

# Variables that an enclosing job leaves in the environment; one of them would pin every rank to a few cores.
CLEAN = "unset ${!SLURM_CPU_BIND@} ${!SRUN_@} ${!MASTER_@} SLURM_EXPORT_ENV RANK WORLD_SIZE LOCAL_RANK"


def job_script(
    plan: Plan,
    cluster: Cluster,
    hang_timeout_s: int,
    tools_python: str | None = None,
    lacks_software: bool = False,
) -> str:
    """`tools_python` runs what does not train (port, hang watcher, requeue policy) on the batch host, outside of any
    container. `lacks_software`: the machine that submits lacks software of the cluster file, so no node is to blame for it."""
    assert plan.request is not None
    python = plan.argv[0]
    fields = {
        "directives": "\n".join(directives(plan.request, cluster, f"{plan.name}-{plan.folder.name}")),
        "run_name": f"{plan.name}/{plan.id}",
        "cluster_name": cluster.name,
        "batch_arithmetic": _batch_arithmetic(plan),
        "signal_lead_s": cluster.signal_lead_s,
        "requeue_functions": requeue_functions(cluster),
        "exports": "\n".join(exports(cluster, plan.env)),
        "run_folder": shlex.quote(str(plan.folder)),
        "python": shlex.quote(python),
        "tools_python": shlex.quote(tools_python or (sys.executable if cluster.container else python)),
        "launch_command": _launch_command(plan),
        "clean_environment": CLEAN,
        "software": "\n".join(software(cluster, _on_missing_software(lacks_software))),
        "nodes": plan.nodes,
        "srun_options": srun_options(cluster),
        "node_command": contained(cluster, 'bash "$RUN/job.sbatch" node'),
        "hang_timeout_s": hang_timeout_s,
        "may_requeue": _may_requeue(cluster),
        **_node_programs(plan.folder / "source"),
    }
    return fill("job.sbatch.tmpl", fields)


def _on_missing_software(lacks_software: bool) -> str:
    where = ' "on the machine that submitted"' if lacks_software else ""
    return f'fail_on_this_node "software"{where}'


def _node_programs(source: Path) -> dict[str, str]:
    """Modules of the sealed source that the job runs beside the training. In run folders of 0.1 they have other names."""
    if is_sealed_before_packages(source):
        return {"hang_watcher": "sft_dist.recipe.watch", "requeue_policy": "sft_dist.recipe.verdict"}
    return {"hang_watcher": "sft_dist.run.hang_watcher", "requeue_policy": "sft_dist.run.requeue_policy"}


def requeue_functions(cluster: Cluster) -> str:
    """Returns bash functions that requeue the job; they need nothing but Slurm."""
    return fill("requeue.sh.tmpl", {"may_requeue": _may_requeue(cluster)}).rstrip("\n")


def _may_requeue(cluster: Cluster) -> str:
    """Returns a command that succeeds when jobs of this cluster may requeue themselves."""
    return "true" if cluster.preemption.requeue else "false"


def _batch_arithmetic(plan: Plan) -> str:
    return (
        f"{plan.nodes} node{'s' if plan.nodes > 1 else ''} x {plan.processes_per_node} processes x {plan.batch.micro_batch}"
        f" micro-batch x {plan.batch.accumulation} accumulation = {plan.batch.global_batch} examples a step"
    )


def directives(request: Request, cluster: Cluster, name: str) -> list[str]:
    """Returns the `#SBATCH` lines of a script that traps Slurm's warning before the end; a script without a trap would die of
    it."""
    options = sbatch_options(request, cluster, name, signal=f"B:USR1@{cluster.signal_lead_s}")
    return [directive(option, value) for option, value in options.items()]


def sbatch_options(
    request: Request, cluster: Cluster, name: str, signal: str | None = None
) -> dict[str, str | int | bool]:
    """Returns long option of sbatch -> value, or True for an option without one."""
    gpus = f"{cluster.gpu_type}:{request.gpus}" if cluster.gpu_type else request.gpus
    options: dict[str, str | int | bool | None] = {
        "job-name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodes": request.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus if request.gpus else None,
        "cpus-per-task": request.cpus,
        "mem": f"{request.memory_mb}M" if request.memory_mb else None,
        "time": format_time(request.time_s) if request.time_s else None,
        "signal": signal,
        "requeue" if cluster.preemption.requeue else "no-requeue": True,
        "open-mode": "append",
        **cluster.sbatch,
    }
    return {option: value for option, value in options.items() if value is not None}


def directive(option: str, value: str | int | bool) -> str:
    """Renders an `#SBATCH` line. sbatch parses these lines itself and has no reliable quoting, so anything doubtful raises
    ValueError."""
    text = f"--{option}" if value is True else f"--{option}={value}"
    if not _SAFE.fullmatch(text):
        raise ValueError(f"not safe in an #SBATCH line: {text!r}")
    return f"#SBATCH {text}"


def exports(cluster: Cluster, env: Mapping[str, str]) -> list[str]:
    """Returns the cluster's environment, then the plan's."""
    variables = {**cluster.environment, **cluster.nccl, **({"TMPDIR": cluster.scratch} if cluster.scratch else {})}
    variables |= {key: value for key, value in env.items() if key != "PYTHONPATH"}
    return [f"export {key}={shlex.quote(value)}" for key, value in sorted(variables.items())]


def software(cluster: Cluster, on_failure: str) -> list[str]:
    """Modules and environments, loaded once, before srun passes the environment on. They do not tolerate `set -u`.
    `on_failure`: the command to run when one of them fails."""
    lines = []
    if cluster.modules:
        lines.append(f"module load {' '.join(shlex.quote(name) for name in cluster.modules)} || {on_failure}")
    if cluster.venv:
        lines.append(f"source {shlex.quote(f'{cluster.venv}/bin/activate')} || {on_failure}")
    if cluster.conda:
        lines.append(f'source "$(conda info --base)/etc/profile.d/conda.sh" || {on_failure}')
        lines.append(f"conda activate {shlex.quote(cluster.conda)} || {on_failure}")
    return ["# ---- on the first node: software", *lines, ""] if lines else []


def _launch_command(plan: Plan) -> str:
    """Returns the plan's command, with what only the node knows."""
    _, *arguments = plan.argv
    words = ['"$RUN"' if word == str(plan.folder) else shlex.quote(word) for word in arguments]
    if plan.nodes > 1:
        module = words.index("sft_dist.train") - 1
        words[module:module] = [
            "--machine_rank", '"$SLURM_NODEID"', "--main_process_ip", '"$HEAD"', "--main_process_port", '"$PORT"',
        ]  # fmt: skip
    return wrap_arguments(words, indent="    ")


def srun_options(cluster: Cluster) -> str:
    """Pyxis is a plug-in of srun. The folder above the run is mounted: the runs of a matrix share a source there."""
    if cluster.container and cluster.container.runtime == "pyxis":
        mounts = ",".join(["${RUN%/*}:${RUN%/*}", *map(_escape_in_double_quotes, cluster.container.mounts)])
        return f'--container-image={shlex.quote(cluster.container.image)} --container-mounts="{mounts}" '
    return ""


def contained(cluster: Cluster, command: str) -> str:
    """Wraps the command in the container: Apptainer is a command around it."""
    if not cluster.container or cluster.container.runtime != "apptainer":
        return command
    words = ["apptainer", "exec", *(["--nv"] if cluster.gpus_per_node else []), "--bind", '"${RUN%/*}"']
    words += [word for mount in cluster.container.mounts for word in ("--bind", shlex.quote(mount))]
    return " ".join([*words, shlex.quote(cluster.container.image), command])


def _escape_in_double_quotes(text: str) -> str:
    return re.sub(r'([\\"$`])', r"\\\1", text)
