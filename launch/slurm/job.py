"""`job.sbatch`: one run as a Slurm job. Pure: a plan and a cluster go in, the text of a bash script comes out.

The script needs nothing of this program but the capsule it stands in. Whatever comes from a recipe or a cluster file is
quoted by `shlex.quote`, or was held against a strict pattern before it stands in an `#SBATCH` line.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from launch.run_folders import wrapped
from launch.slurm.resources import clock

if TYPE_CHECKING:
    from launch.plan import Plan
    from launch.slurm.clusters import Cluster
    from launch.slurm.resources import Request

_SAFE = re.compile(r"[^\s\"'`$\\#;<>\x00-\x1f\x7f]+")


def job_script(plan: Plan, cluster: Cluster, hang_timeout_s: int, tools_python: str | None = None) -> str:
    """`tools_python` runs what is not training (port, watch, verdict) on the batch host, outside of any container."""
    assert plan.request is not None
    folder = str(plan.folder)
    lead = cluster.signal_lead_s
    return "\n".join(
        [
            "#!/bin/bash",
            *header(plan.request, cluster, f"{plan.name}-{plan.folder.name}"),
            f"# Run {plan.name}/{plan.id} on {cluster.name}: trains, or goes on after the newest checkpoint.",
            f"# {plan.nodes} node{'s' if plan.nodes > 1 else ''} x {plan.processes_per_node} processes x {plan.batch.micro_batch} micro-batch"
            f" x {plan.batch.accumulation} accumulation = {plan.batch.global_batch} examples a step",
            "#",
            "# Needs no sft-dist command: `sbatch job.sbatch`. Everything is printed to attempts/NNN/launcher.log.",
            f"# {lead} s before the end, and when others go first, Slurm signals this shell (not torchrun, which would die of",
            "# it); then all ranks save at the same step, and the job puts itself in the queue again.",
            "",
            again(cluster),
            *_settings(plan, cluster, tools_python),
            "",
            NODE.format(launch=_launch(plan, folder)),
            f"{CLEAN}  # left by a job around this one",
            "",
            TRAPS,
            *software(cluster, 'elsewhere "software"'),
            BATCH.format(
                nodes=plan.nodes,
                srun=srun_options(cluster),
                task=contained(cluster, 'bash "$RUN/job.sbatch" node'),
                hang=hang_timeout_s,
                requeue="true" if cluster.preemption.requeue else "false",
            ),
        ]
    )


def header(asked: Request, cluster: Cluster, name: str) -> list[str]:
    """The `#SBATCH` lines of a script that Slurm warns before the end; one without a trap would die of it."""
    found = options(asked, cluster, name, signal=f"B:USR1@{cluster.signal_lead_s}")
    return [directive(key, value) for key, value in found.items()]


def options(asked: Request, cluster: Cluster, name: str, signal: str | None = None) -> dict[str, str | int | bool]:
    """What sbatch is asked for: long option -> value, or True for an option without one."""
    gpus = f"{cluster.gpu_type}:{asked.gpus}" if cluster.gpu_type else asked.gpus
    found: dict[str, str | int | bool | None] = {
        "job-name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodes": asked.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus if asked.gpus else None,
        "cpus-per-task": asked.cpus,
        "mem": f"{asked.memory_mb}M" if asked.memory_mb else None,
        "time": clock(asked.time_s) if asked.time_s else None,
        "signal": signal,
        "requeue" if cluster.preemption.requeue else "no-requeue": True,
        "open-mode": "append",
        **cluster.sbatch,
    }
    return {key: value for key, value in found.items() if value is not None}


def directive(option: str, value: str | int | bool) -> str:
    """sbatch reads these lines itself and knows no quoting to rely on, so nothing doubtful gets here."""
    text = f"--{option}" if value is True else f"--{option}={value}"
    if not _SAFE.fullmatch(text):
        raise ValueError(f"not safe in an #SBATCH line: {text!r}")
    return f"#SBATCH {text}"


def _settings(plan: Plan, cluster: Cluster, tools_python: str | None) -> list[str]:
    """Variables for both parts of the script; those from outside come first, so that they replace none of its own."""
    python = plan.argv[0]
    tools = tools_python or (sys.executable if cluster.container else python)
    return [
        *exports(cluster, plan.env),
        f"export RUN={shlex.quote(str(plan.folder))}",
        f"export PYTHON={shlex.quote(python)}",
        f"TOOLS={shlex.quote(tools)}",
        f"export SFT_DIST_SIGNAL_LEAD={cluster.signal_lead_s}",
        'export PYTHONPATH="$RUN/source${PYTHONPATH:+:$PYTHONPATH}"  # the sealed source before all else',
        "umask 077",
        'cd "$RUN" || elsewhere "cd $RUN"  # `python -m` looks here first, and must not find another sft_dist than the sealed one',
    ]


def exports(cluster: Cluster, env: Mapping[str, str]) -> list[str]:
    """The cluster's environment, then the plan's."""
    given = {**cluster.environment, **cluster.nccl, **({"TMPDIR": cluster.scratch} if cluster.scratch else {})}
    given |= {key: value for key, value in env.items() if key != "PYTHONPATH"}
    return [f"export {key}={shlex.quote(value)}" for key, value in sorted(given.items())]


def software(cluster: Cluster, otherwise: str) -> list[str]:
    """Modules and environments, once, before srun hands the environment on. They do not bear `set -u`. `otherwise`: what
    the script does when one of them fails."""
    lines = []
    if cluster.modules:
        lines.append(f"module load {' '.join(shlex.quote(name) for name in cluster.modules)} || {otherwise}")
    if cluster.venv:
        lines.append(f"source {shlex.quote(f'{cluster.venv}/bin/activate')} || {otherwise}")
    if cluster.conda:
        lines.append(f'source "$(conda info --base)/etc/profile.d/conda.sh" || {otherwise}')
        lines.append(f"conda activate {shlex.quote(cluster.conda)} || {otherwise}")
    return ["# ---- on the first node: software", *lines, ""] if lines else []


def again(cluster: Cluster) -> str:
    """Shell functions that put the job in the queue again; they need nothing but Slurm."""
    return AGAIN.format(requeue="true" if cluster.preemption.requeue else "false")


def _launch(plan: Plan, folder: str) -> str:
    """The plan's command, with what only the node knows."""
    _, *arguments = plan.argv
    words = ['"$RUN"' if word == folder else shlex.quote(word) for word in arguments]
    if plan.nodes > 1:
        here = words.index("sft_dist.train") - 1
        words[here:here] = [
            "--machine_rank", '"$SLURM_NODEID"', "--main_process_ip", '"$HEAD"', "--main_process_port", '"$PORT"',
        ]  # fmt: skip
    return wrapped(words, indent="    ")


def srun_options(cluster: Cluster) -> str:
    """Pyxis is a plug-in of srun. The folder above the run is mounted: the runs of a matrix share a source there."""
    if cluster.container and cluster.container.runtime == "pyxis":
        mounts = ",".join(["${RUN%/*}:${RUN%/*}", *map(_escaped, cluster.container.mounts)])
        return f'--container-image={shlex.quote(cluster.container.image)} --container-mounts="{mounts}" '
    return ""


def contained(cluster: Cluster, command: str) -> str:
    """Apptainer is a command around the command."""
    if not cluster.container or cluster.container.runtime != "apptainer":
        return command
    words = ["apptainer", "exec", *(["--nv"] if cluster.gpus_per_node else []), "--bind", '"${RUN%/*}"']
    words += [word for mount in cluster.container.mounts for word in ("--bind", shlex.quote(mount))]
    return " ".join([*words, shlex.quote(cluster.container.image), command])


def _escaped(text: str) -> str:
    """For the inside of double quotes."""
    return re.sub(r'([\\"$`])', r"\\\1", text)


# What a job around this one leaves in the environment: it would pin every rank to a few cores, for one.
CLEAN = "unset ${!SLURM_CPU_BIND@} ${!SRUN_@} ${!MASTER_@} SLURM_EXPORT_ENV RANK WORLD_SIZE LOCAL_RANK"

AGAIN = """\
job=$SLURM_JOB_ID
[[ ${{SLURM_ARRAY_JOB_ID-}} ]] && job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID  # the plain id may mean the whole array

left_out() {{ scontrol show job -o "$job" | sed -n 's/.* ExcNodeList=\\([^ ]*\\).*/\\1/p' | grep -v null; }}

# Has the partition nodes enough without this one, too? Else the job would wait for ever.
enough_without() {{
  local nodes others; nodes=$(sinfo -hN -p "${{SLURM_JOB_PARTITION-}}" -o %N | sort -u | wc -l)
  others=$(left_out); others=${{others:+$others,}}$1
  others=${{others//[^,]}}
  ((nodes - ${{#others}} - 1 >= ${{SLURM_JOB_NUM_NODES:-1}}))
}}

# Puts the job in the queue again, without the nodes named; then Slurm ends this shell.
again() {{
  local tries others
  for tries in 1 2 3 4 5 6 7 8 9 10; do  # slurmctld may be restarting
    scontrol requeue "$job" && break
    ((tries < 10)) || {{ echo "$(date +%T) Slurm does not put the job in the queue again: submit it again"; return 1; }}
    sleep 10
  done
  # Only a job that waits can be told which nodes to leave out; this shell has some seconds before it is killed.
  if [[ $1 =~ ^[A-Za-z0-9_.,-]+$ ]] && enough_without "$1"; then
    others=$(left_out)
    for tries in 1 2 3 4 5 6 7 8 9 10; do
      scontrol update JobId="$job" ExcNodeList="${{others:+$others,}}$1" && break
      sleep 0.5
    done
  fi
  sleep 60
}}

# On this node not even the beginning works: another node may do, until some are left out.
elsewhere() {{
  echo "$(date +%FT%T) ${{SLURMD_NODENAME-}}: $1: failed" >&2
  [[ ${{SLURM_STEP_ID-}} || ! ${{SLURMD_NODENAME-}} ]] && exit 1  # in a step there is no putting back
  local commas; commas=$(left_out | tr -dc ,)
  {requeue} && ((${{#commas}} < 2 && ${{SLURM_RESTART_COUNT:-0}} < 50)) && enough_without "$SLURMD_NODENAME" &&
    again "$SLURMD_NODENAME" >&2
  exit 1
}}
"""

TRAPS = """\
# ---- on the first node: Slurm's warnings, from the beginning
rm -f "$RUN/stop"
signal=
trap 'signal=USR1; echo "$(date +%T) USR1: all ranks are asked to save"; touch "$RUN/stop"' USR1
trap 'signal=${signal:-TERM}; echo "$(date +%T) TERM: all ranks are asked to save"; touch "$RUN/stop"' TERM
"""

NODE = """\
# ---- on every node: one task, which starts the node's processes
if [[ ${{1-}} == node ]]; then
  exec "$PYTHON" {launch}
fi
"""

BATCH = """\
# ---- on the first node: a new attempt
mkdir -p "$RUN/attempts" || elsewhere "mkdir $RUN/attempts"
number=1
until mkdir "$RUN/attempts/$(printf %03d "$number")" 2>/dev/null; do
  number=$((number + 1))
  ((number < 1000)) || elsewhere "mkdir in $RUN/attempts"
done
attempt=$RUN/attempts/$(printf %03d "$number")
export SFT_DIST_ATTEMPT=$number
echo "attempt $number, output in $attempt/launcher.log"
exec >>"$attempt/launcher.log" 2>&1
echo "$(date +%FT%T) job $job, start ${{SLURM_RESTART_COUNT:-0}}, on $SLURM_JOB_NODELIST"

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
[[ $HEAD ]] || elsewhere "scontrol does not name the first node of $SLURM_JOB_NODELIST"
[[ ${{SLURM_CPUS_PER_TASK-}} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it from sbatch
export HEAD PORT

# A port that is free here. Where the search begins differs between jobs, restarts and tries, so that two jobs that
# look at the same moment do not find the same one.
free_port() {{
  "$TOOLS" -c '
import socket, sys
for port in range(int(sys.argv[1]), 32000):
    try:
        with socket.socket() as probe:
            probe.bind(("", port))
        sys.exit(print(port))
    except OSError:
        continue
sys.exit(1)' $((10000 + (SLURM_JOB_ID * 7 + ${{SLURM_RESTART_COUNT:-0}} * 1009 + $1 * 101) % 20000))
}}

for try in 1 2 3; do
  PORT=$(free_port "$try") || {{ code=1; echo "no free port"; break; }}
  echo "$(date +%T) {nodes} node(s), meeting at $HEAD:$PORT"
  srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --kill-on-bad-exit=1 --export=ALL {srun}\\
    {task} &
  srun=$!
  "$TOOLS" -m sft_dist.run.hang_watcher "$RUN" "$number" --timeout {hang} --pid "$srun" &
  watch=$!
  # A signal ends `wait` early, so it is asked again until srun is gone.
  while :; do wait "$srun"; code=$?; kill -0 "$srun" 2>/dev/null || break; done
  kill "$watch" 2>/dev/null
  wait "$watch" 2>/dev/null
  # Another process took the port between the look and the start: nothing has been trained yet, so try another one.
  [[ $code != 0 && ! -e $attempt/start.json && ! $signal ]] || break
  grep -q -e EADDRINUSE -e 'address already in use' "$attempt/launcher.log" || break
done
printf '{{"returncode": %d, "time": "%s", "killed": false, "job": "%s"}}\\n' \\
  "$code" "$(date -u +%FT%T+00:00)" "$job" >"$attempt/.exit.json" && mv "$attempt/.exit.json" "$attempt/exit.json"

# ---- what happened, and what next? The ranks' files know; srun's exit code (143 for almost anything) does not.
action=stop exclude= exit=
while IFS='=' read -r key value; do
  case $key in
    action) action=$value ;;
    exclude) exclude=$value ;;
    exit) exit=$value ;;
  esac
done < <("$TOOLS" -m sft_dist.run.requeue_policy "$RUN" "$number" --exit-code "$code" ${{signal:+--batch-signal "$signal"}})
echo "$(date +%T) srun ended with $code: $action${{exclude:+, without $exclude}}"
[[ $exit =~ ^[0-9]{{1,3}}$ ]] || exit=$code
if [[ $action == requeue ]] && {requeue}; then
  again "$exclude" || exit $((exit ? exit : 1))
fi
exit "$exit"
"""
