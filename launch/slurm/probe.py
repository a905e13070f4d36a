"""`sft-dist cluster probe`: a first draft of a cluster file, from the output of sinfo and scontrol. `draft` is pure."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from launch.slurm.client import run_command
from launch.slurm.resources import format_time
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.suggest import similar_to

NODE_FORMAT = "%P|%c|%m|%G|%f|%l"  # partition, CPUs, memory in MiB, generic resources, features, time limit
# Types that come with one size only; a100, v100 and h100 come with several.
GPU_MEMORY_GB = {"h200": 141, "b200": 180, "l40s": 48, "l40": 48, "a40": 48, "a10": 24, "l4": 24, "t4": 16, "p100": 16}


@dataclass(frozen=True)
class Probed:
    """One partition; `nodes` are the lines of sinfo for it, one per node."""

    partition: str
    other_partitions: tuple[str, ...]
    nodes: tuple[tuple[str, ...], ...]
    partition_text: str  # scontrol show partition
    config_text: str  # scontrol show config


def probe(partition: str | None) -> Probed:
    """Runs three Slurm commands. Raises UserError when there is no such partition."""
    rows = [
        tuple(line.split("|"))
        for line in run_command(["sinfo", "--noheader", "--Node", f"--format={NODE_FORMAT}"]).splitlines()
    ]
    rows = [row for row in rows if len(row) == 6]
    names = list(dict.fromkeys(row[0].rstrip("*") for row in rows))
    if not names:
        raise UserError("sinfo shows no partition")
    default = next((row[0].rstrip("*") for row in rows if row[0].endswith("*")), names[0])
    selected = partition or default
    if selected not in names:
        suggestion = similar_to(selected, names)
        raise UserError(f"no partition {selected!r}; valid: {', '.join(names)}. {suggestion}".strip())
    return Probed(
        selected,
        tuple(name for name in names if name != selected),
        tuple(row for row in rows if row[0].rstrip("*") == selected),
        run_command(["scontrol", "show", "partition", selected]),
        run_command(["scontrol", "show", "config"]),
    )


def draft(probed: Probed) -> str:
    """Returns a cluster file with comments; settings that Slurm does not report are comments to fill in."""
    kinds = Counter(row[1:5] for row in probed.nodes)
    (cpus, memory, gres, features), num_nodes = kinds.most_common(1)[0]
    gpu_type, gpus = gpus_of(gres)
    lines = [
        f"# Drafted from sinfo and scontrol; review it. Partition {probed.partition}: {len(probed.nodes)} nodes.",
        f"partition: {probed.partition}"
        + (f"    # others: {', '.join(probed.other_partitions)}" if probed.other_partitions else ""),
        "# account: my-project",
        "# qos: normal",
    ]
    if len(kinds) > 1:
        lines.append(
            f"# Its nodes differ; this is the most frequent kind ({num_nodes} of {len(probed.nodes)}). To get only this kind:"
        )
        lines.append(f"# constraint: {features}" if features not in ("", "(null)") else "# constraint: ...")
    lines += [f"gpu_type: {gpu_type}"] if gpu_type else []
    lines += [f"gpus_per_node: {gpus}"]
    if gpus:
        memory_gb = gpu_memory_gb(f"{gpu_type} {features}")
        lines.append(f"gpu_memory: {memory_gb}GB" if memory_gb else "# gpu_memory: 80GB    # of one GPU")
    lines += [f"cpus_per_node: {_digits(cpus)}", f"memory_per_node: {_digits(memory)}MiB"]
    limit_s = parse_time(_setting(probed.partition_text, "MaxTime"))
    lines.append(f"max_time: {format_time(limit_s)}" if limit_s else "# max_time: 1d    # the partition has no limit")
    max_nodes = _setting(probed.partition_text, "MaxNodes")
    lines.append(f"max_nodes: {max_nodes if max_nodes.isdecimal() else len(probed.nodes)}")
    if (array := _setting(probed.config_text, "MaxArraySize")).isdecimal():
        lines.append(f"max_array_size: {array}")
    accounting = "slurmdbd" in _setting(probed.config_text, "AccountingStorageType")
    lines += [
        f"accounting: {str(accounting).lower()}",
        "preemption:",
        "  signal_lead: 2min    # a little longer than one step and one checkpoint take",
        f"  requeue: {'false' if _setting(probed.config_text, 'JobRequeue') == '0' else 'true'}",
        "# modules: [cuda]",
        "# venv: /shared/venvs/sft",
        "# shared_folder: /shared",
    ]
    return "\n".join(lines) + "\n"


def gpus_of(gres: str) -> tuple[str, int]:
    """Returns (type, count) from `gpu:h100:4(S:0-1),shard:8`; the type is empty when there are none or several."""
    gpus = [(kind or "", int(count)) for kind, count in re.findall(r"\bgpu(?::([A-Za-z]\w*))?:(\d+)", gres)]
    types = {kind for kind, _ in gpus}
    return (types.pop() if len(types) == 1 else ""), sum(count for _, count in gpus)


def gpu_memory_gb(names: str) -> int | None:
    """Returns memory of one GPU, if its type or the node's features contain it: `a100_80gb`, `gpu_mem:40g`, or a type of one size
    only."""
    if match := re.search(r"(?:gpu|a\d+|h\d+|v\d+)\w*?[_:=-](\d{2,3})gb?\b", names, re.IGNORECASE):
        return int(match[1])
    return next(
        (size for kind, size in GPU_MEMORY_GB.items() if re.search(rf"(?i)(?<![a-z0-9]){kind}(?![a-z0-9])", names)),
        None,
    )


def parse_time(limit: str) -> int | None:
    """Parses Slurm's `4:00:00`, `1-00:00:00`, `30:00`; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not match:
        return None
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _setting(text: str, key: str) -> str:
    match = re.search(rf"(?:^|\s){re.escape(key)}\s*=\s*(\S+)", text)
    return match[1] if match else ""


def _digits(text: str) -> str:
    """`64000+` (nodes differ) -> 64000."""
    return "".join(letter for letter in text if letter.isdigit()) or "1"
