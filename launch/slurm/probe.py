"""`sft-dist cluster probe`: a first draft of a cluster file, from what sinfo and scontrol say. `draft` is pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from launch.slurm.client import ask
from launch.slurm.resources import clock
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.suggest import similar_to

NODE_FORMAT = "%P|%c|%m|%G|%f|%l"  # partition, CPUs, memory in MiB, generic resources, features, time limit
# Types that come with one size only; a100, v100 and h100 come with several.
GPU_MEMORY_GB = {"h200": 141, "b200": 180, "l40s": 48, "l40": 48, "a40": 48, "a10": 24, "l4": 24, "t4": 16, "p100": 16}


@dataclass(frozen=True)
class Probed:
    """One partition; `nodes` are the lines of sinfo for it, one a node."""

    partition: str
    others: tuple[str, ...]
    nodes: tuple[tuple[str, ...], ...]
    partition_text: str  # scontrol show partition
    config_text: str  # scontrol show config


def probe(partition: str | None) -> Probed:
    """Asks Slurm three times. Raises UserError when there is no such partition."""
    rows = [
        tuple(line.split("|"))
        for line in ask(["sinfo", "--noheader", "--Node", f"--format={NODE_FORMAT}"]).splitlines()
    ]
    rows = [row for row in rows if len(row) == 6]
    names = list(dict.fromkeys(row[0].rstrip("*") for row in rows))
    if not names:
        raise UserError("sinfo shows no partition")
    default = next((row[0].rstrip("*") for row in rows if row[0].endswith("*")), names[0])
    chosen = partition or default
    if chosen not in names:
        raise UserError(f"no partition {chosen!r}; there are: {', '.join(names)}. {similar_to(chosen, names)}".strip())
    return Probed(
        chosen,
        tuple(name for name in names if name != chosen),
        tuple(row for row in rows if row[0].rstrip("*") == chosen),
        ask(["scontrol", "show", "partition", chosen]),
        ask(["scontrol", "show", "config"]),
    )


def draft(found: Probed) -> str:
    """A cluster file with comments; what Slurm did not say stands there as a comment to fill in."""
    kinds = Counter(row[1:5] for row in found.nodes)
    (cpus, memory, gres, features), count = kinds.most_common(1)[0]
    gpu_type, gpus = gpus_of(gres)
    lines = [
        f"# Drafted from sinfo and scontrol; look it over. Partition {found.partition}: {len(found.nodes)} nodes.",
        f"partition: {found.partition}" + (f"    # others: {', '.join(found.others)}" if found.others else ""),
        "# account: my-project",
        "# qos: normal",
    ]
    if len(kinds) > 1:
        lines.append(
            f"# Its nodes differ; these are the most frequent ({count} of {len(found.nodes)}). To get only such:"
        )
        lines.append(f"# constraint: {features}" if features not in ("", "(null)") else "# constraint: ...")
    lines += [f"gpu_type: {gpu_type}"] if gpu_type else []
    lines += [f"gpus_per_node: {gpus}"]
    if gpus:
        memory_gb = gpu_memory_gb(f"{gpu_type} {features}")
        lines.append(f"gpu_memory: {memory_gb}GB" if memory_gb else "# gpu_memory: 80GB    # of one GPU")
    lines += [f"cpus_per_node: {_digits(cpus)}", f"memory_per_node: {_digits(memory)}MiB"]
    limit = seconds(_setting(found.partition_text, "MaxTime"))
    lines.append(f"max_time: {clock(limit)}" if limit else "# max_time: 1d    # the partition has no limit")
    most = _setting(found.partition_text, "MaxNodes")
    lines.append(f"max_nodes: {most if most.isdecimal() else len(found.nodes)}")
    if (array := _setting(found.config_text, "MaxArraySize")).isdecimal():
        lines.append(f"max_array_size: {array}")
    accounting = "slurmdbd" in _setting(found.config_text, "AccountingStorageType")
    lines += [
        f"accounting: {str(accounting).lower()}",
        "preemption:",
        "  signal_lead: 2min    # as long as one step and one checkpoint take, and a little more",
        f"  requeue: {'false' if _setting(found.config_text, 'JobRequeue') == '0' else 'true'}",
        "# modules: [cuda]",
        "# venv: /shared/venvs/sft",
        "# shared_folder: /shared",
    ]
    return "\n".join(lines) + "\n"


def gpus_of(gres: str) -> tuple[str, int]:
    """(type, count) from `gpu:h100:4(S:0-1),shard:8`; the type is empty when there are none or several."""
    found = [(kind or "", int(count)) for kind, count in re.findall(r"\bgpu(?::([A-Za-z]\w*))?:(\d+)", gres)]
    types = {kind for kind, _ in found}
    return (types.pop() if len(types) == 1 else ""), sum(count for _, count in found)


def gpu_memory_gb(names: str) -> int | None:
    """Of one GPU, where its type or the node's features tell: `a100_80gb`, `gpu_mem:40g`, or a type of one size only."""
    if match := re.search(r"(?:gpu|a\d+|h\d+|v\d+)\w*?[_:=-](\d{2,3})gb?\b", names, re.IGNORECASE):
        return int(match[1])
    return next(
        (size for kind, size in GPU_MEMORY_GB.items() if re.search(rf"(?i)(?<![a-z0-9]){kind}(?![a-z0-9])", names)),
        None,
    )


def seconds(limit: str) -> int | None:
    """Slurm's `4:00:00`, `1-00:00:00`, `30:00`; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not match:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def _setting(text: str, key: str) -> str:
    match = re.search(rf"(?:^|\s){re.escape(key)}\s*=\s*(\S+)", text)
    return match[1] if match else ""


def _digits(text: str) -> str:
    return "".join(_whole(text)) or "1"


def _whole(text: str) -> Iterable[str]:
    """`64000+` (nodes differ) -> 64000."""
    return (letter for letter in text if letter.isdigit())
