"""What a cluster offers, as data: `slurm/clusters/NAME.yaml`, the user's own in ~/.config/sft-dist/clusters/, or any file.

Read with the same care as recipes. Whatever gets into an `#SBATCH` line is matched against strict patterns here, because
sbatch's own parser has no safe quoting; everything else is quoted for the shell where it is written.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from sft_dist.recipe.errors import Mark, Problem, UserError
from sft_dist.recipe.explain import problems_from
from sft_dist.recipe.files import shipped
from sft_dist.recipe.masking import masked
from sft_dist.recipe.schema import NAME_PATTERN, Positive
from sft_dist.recipe.section import Section, listing, mapping
from sft_dist.recipe.source import Schema, Source, display_name
from sft_dist.recipe.suggest import similar_to
from sft_dist.recipe.units import bytes_of, check_memory, check_time, seconds_of
from sft_dist.recipe.yaml_lines import read_yaml

LOCAL = "local"  # this machine; no file

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:@+-]{0,127}")
_CONSTRAINT = re.compile(r"[A-Za-z0-9(\[][A-Za-z0-9_.,:&|*()\[\]-]{0,255}")
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:@+/=-]{0,255}")
_CONDA = re.compile(rf"/?{_MODULE.pattern}")
_VARIABLE = re.compile(
    r"(?!(?:SLURM|SBATCH|SRUN|SFT_DIST|BASH|ACCELERATE)_)"  # would change what Slurm and this program do
    r"(?!(?:BASH|BASHOPTS|SHELLOPTS|ENV|IFS|UID|EUID|PPID|PYTHONPATH|RANK|WORLD_SIZE|LOCAL_RANK)$)"
    r"[A-Za-z_][A-Za-z0-9_]{0,127}"
)
_SECRET = re.compile(
    r"(?i)(token|secret|password|passwd|passphrase|credentials?|(api|access|private|secret)_?key"
    r"|(?:^|_)(pass|pat|auth|key|creds?|pwd|cookie|jwt|bearer|webhook(_url)?))"
    r"(_?[0-9]+|_id|_value|_key|_access_key)*$"
)
_SECRET_VALUE = re.compile(
    r"(hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abprs]-)[\w-]{16,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.eyJ|-----BEGIN"
)
_OPTION_VALUE = re.compile(r"[A-Za-z0-9/@_.+][A-Za-z0-9/@_.,:;=+&|*()\[\]~^!-]{0,511}")

# Options that `sbatch:` of a cluster file may set. Names from sbatch's manual page.
SBATCH_OPTIONS = (
    "acctg-freq", "batch", "bb", "begin", "cluster-constraint", "clusters", "contiguous", "core-spec",
    "cores-per-socket", "cpu-freq", "deadline", "delay-boot", "distribution", "exclude", "exclusive", "extra",
    "extra-node-info", "gid", "gpu-bind", "gpu-freq", "gres", "gres-flags", "hint", "hold", "licenses", "mail-type",
    "mail-user", "mcs-label", "mem-bind", "network", "nice", "nodefile", "nodelist", "no-kill", "oversubscribe",
    "overcommit", "power", "prefer", "priority", "profile", "propagate", "reboot", "reservation", "segment",
    "sockets-per-node", "spread-job", "switches", "thread-spec", "threads-per-core", "time-min", "tmp",
    "tres-bind", "tres-per-task", "use-min-nodes", "wait-all-nodes", "wckey",
)  # fmt: skip
# Options that this program writes itself, and the setting that decides each, "" where none does.
OWN_OPTIONS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
    "nodes": "the recipe's resources.nodes", "time": "the recipe's resources.time", "mem": "the recipe's resources.memory",
    "gpus": "gpus_per_node", "gpus-per-node": "gpus_per_node", "cpus-per-task": "cpus_per_node",
    "comment": "", "requeue": "preemption.requeue", "no-requeue": "preemption.requeue", "signal": "preemption.signal_lead",
}  # fmt: skip


def _matching(pattern: re.Pattern[str], description: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"expected {description}")
        return text

    return AfterValidator(check)


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected one line of printable text")
    return text


def _path(text: str) -> str:
    _one_line(text)
    expanded = os.path.expanduser(text)
    if not expanded.startswith("/") or ".." in Path(expanded).parts:
        raise ValueError("expected an absolute path without `..`")
    return expanded


def _mount(text: str) -> str:
    _one_line(text)
    parts = text.split(":")
    if len(parts) > 3 or "," in text or not all(path.startswith("/") for path in parts[:2]) or ".." in text.split("/"):
        raise ValueError("expected `/outside`, `/outside:/inside` or `/outside:/inside:ro`")
    return text


def _image(text: str) -> str:
    _one_line(text)
    if not re.match(r"[A-Za-z0-9/]", text) or " " in text:
        raise ValueError("expected an image file's path, or `docker://...`")
    return text


Word = Annotated[str, _matching(_WORD, "a name of letters, digits and `_.,:@+-`")]
Module = Annotated[str, _matching(_MODULE, "a module's name, such as cuda/12.4")]
Variable = Annotated[
    str,
    _matching(_VARIABLE, "an environment variable that belongs neither to Slurm nor to the shell nor to this program"),
]
Line = Annotated[str, AfterValidator(_one_line)]
AbsolutePath = Annotated[str, AfterValidator(_path)]
Time = Annotated[str, AfterValidator(check_time)]
Memory = Annotated[str, AfterValidator(check_memory)]


class Container(Section):
    runtime: Literal["apptainer", "pyxis"] = Field(description="Apptainer's own command, or srun's Pyxis plug-in.")
    image: Annotated[str, AfterValidator(_image)] = Field(description="Image file, or `docker://...`.")
    mounts: list[Annotated[str, AfterValidator(_mount)]] = Field(
        default_factory=listing,
        description="Folders to mount: `/data` or `/data:/inside[:ro]`. The run's own is always mounted.",
    )


class Preemption(Section):
    signal_lead: Time = Field(
        "2min",
        description="How long before the end Slurm warns the job, which must save a checkpoint within that time.",
    )
    requeue: bool = Field(True, description="Whether a job may requeue itself after it was stopped.")


class Cluster(Section):
    """One way to use one cluster: where jobs go, what a node has, how software is found there."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = Field(
        description="Name of the cluster [default: the file's name]."
    )
    description: str = Field("", description="For people.")
    partition: Word | None = Field(None, description="Partition, or several: `gpu,gpu-long` [default: the cluster's].")
    account: Word | None = Field(None, description="Account to charge.")
    qos: Word | None = Field(None, description="Quality of service.")
    constraint: Annotated[str, _matching(_CONSTRAINT, "node features such as `h100&nvlink`")] | None = Field(
        None, description="Node features: `h100&nvlink`."
    )
    gpu_type: Word | None = Field(None, description="GPU type as Slurm names it: `h100`.")
    gpus_per_node: int = Field(0, ge=0, le=1024, description="GPUs of a node; 0: train on its CPUs.")
    gpu_memory: Memory | None = Field(
        None,
        description="Memory of one GPU: `80GB`. `train.strategy: auto` needs it to choose; without it every process holds the whole model.",
    )
    cpus_per_node: Positive = Field(description="CPUs of a node. A run on half the GPUs gets half of them.")
    memory_per_node: Memory | None = Field(
        None, description="Memory of a node: `500GB`. Without it, no memory is requested."
    )
    max_time: Time | None = Field(None, description="Maximum time of a job, and the default of recipes without one.")
    max_nodes: Positive | None = Field(None, description="Maximum number of nodes of a job.")
    max_array_size: Positive = Field(
        1001, description="Maximum number of tasks of a job array: MaxArraySize of `scontrol show config`."
    )
    modules: list[Module] = Field(default_factory=listing, description="Modules to load: `[cuda/12.4]`.")
    venv: AbsolutePath | None = Field(None, description="Virtual environment on the nodes.")
    conda: Annotated[str, _matching(_CONDA, "an environment's name or path")] | None = Field(
        None, description="Conda environment, by name or path."
    )
    container: Container | None = Field(None, description="Train inside a container.")
    environment: dict[Variable, Line] = Field(default_factory=mapping, description="Environment variables.")
    nccl: dict[Variable, Line] = Field(
        default_factory=mapping, description="NCCL settings, such as `NCCL_SOCKET_IFNAME: ib0`."
    )
    shared_folder: AbsolutePath | None = Field(
        None, description="Folder that every node sees; runs outside it are refused."
    )
    scratch: AbsolutePath | None = Field(None, description="Folder on each node's own disk, for temporary files.")
    preemption: Preemption = Field(
        default_factory=lambda: Preemption(), description="What Slurm does before a time limit or a preemption."
    )
    accounting: bool = Field(True, description="Whether `sacct` works on this cluster.")
    sbatch: dict[str, str | int | bool] = Field(
        default_factory=mapping, description="Further sbatch options by long name: `{reservation: course}`."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Cluster:
        if self.venv and self.conda:
            raise ValueError("give `venv` or `conda`, not both")
        if self.container and (self.venv or self.conda):
            raise ValueError("`container` brings its own Python; `venv` and `conda` would have no effect")
        if self.gpu_type and not self.gpus_per_node:
            raise ValueError("`gpu_type` needs gpus_per_node")
        if self.gpu_memory and not self.gpus_per_node:
            raise ValueError("`gpu_memory` needs gpus_per_node")
        for key, value in {**self.environment, **self.nccl}.items():
            # It would stand in every job's script.
            if _SECRET.search(key) or _SECRET_VALUE.search(value) or masked(value) != value:
                raise ValueError(f"{key} looks like a secret; export it in the shell that submits, and jobs inherit it")
        for key in self.nccl:
            if not key.startswith(("NCCL_", "TORCH_NCCL_", "FI_", "UCX_")):
                raise ValueError(f"`nccl` takes NCCL_*, TORCH_NCCL_*, FI_* and UCX_*; {key} belongs to environment")
        return self

    @property
    def memory_mb(self) -> int | None:
        return bytes_of(self.memory_per_node) // 2**20 if self.memory_per_node else None

    @property
    def max_time_s(self) -> int | None:
        return seconds_of(self.max_time) if self.max_time else None

    @property
    def signal_lead_s(self) -> int:
        return seconds_of(self.preemption.signal_lead)


# Other common names of these settings.
OTHER_NAMES = {
    "queue": "partition",
    "partitions": "partition",
    "project": "account",
    "gres": "gpus_per_node",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_node",
    "cores": "cpus_per_node",
    "cores_per_node": "cpus_per_node",
    "mem": "memory_per_node",
    "memory": "memory_per_node",
    "gpu_mem": "gpu_memory",
    "vram": "gpu_memory",
    "time": "max_time",
    "walltime": "max_time",
    "time_limit": "max_time",
    "features": "constraint",
    "env": "environment",
    "module": "modules",
    "image": "container.image",
    "options": "sbatch",
    "extra": "sbatch",
    "signal": "preemption.signal_lead",
    "requeue": "preemption.requeue",
}
CLUSTER = Schema(Cluster, "cluster file", OTHER_NAMES)


def load_cluster(name: str) -> Cluster:
    """Returns the cluster of this name, or in this file. Raises UserError with every problem."""
    return read_cluster(find_cluster(name))


def read_cluster(file: Path) -> Cluster:
    """Raises UserError with every problem."""
    document = read_yaml(file, display_name(file))
    data = {"name": file.stem, **document.data}
    source = Source(data, file, document.keys, document.values, document.texts, CLUSTER)
    options = data.get("sbatch")
    problems = [
        replace(problem, mark=source.mark(tuple(problem.path.split("."))))
        for problem in _option_problems(options if isinstance(options, dict) else {})
    ]
    if data["name"] == LOCAL:
        problems.append(
            Problem(f"`{LOCAL}` is this machine; give the file another name", "name", mark=Mark(display_name(file)))
        )
    try:
        cluster = Cluster.model_validate(data)
    except ValidationError as error:
        raise UserError([*problems_from(error, source), *problems]) from None
    if problems:
        raise UserError(problems)
    return cluster


def find_cluster(name: str) -> Path:
    """Returns the file of a cluster: the user's own before those that are shipped. Raises UserError."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name).expanduser()
    clusters = known_clusters()
    if name in clusters:
        return clusters[name]
    if name == LOCAL:
        raise UserError("`local` is this machine and has no cluster file")
    hint = similar_to(name, list(clusters)) or "a file's path works too; `sft-dist cluster probe` drafts one"
    raise UserError(Problem(f"no cluster {name!r}", "--cluster", valid=(LOCAL, *clusters), hint=hint))


def known_clusters() -> dict[str, Path]:
    """Returns name -> file, the shipped ones first; the user's own replace those of the same name."""
    files: dict[str, Path] = {}
    for folder in (shipped("slurm", "clusters"), own_folder()):
        if folder.is_dir():
            files |= {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    return files


def own_folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "sft-dist" / "clusters"


def _own_hint(option: str) -> str:
    setting = OWN_OPTIONS[option]
    return f"set {setting}" if setting else "remove it: it names the submission that a job belongs to"


def _option_problems(options: dict[Any, Any]) -> list[Problem]:
    """Checks `sbatch:`, whose keys and values become `#SBATCH` lines as they are."""
    problems = []
    for key, value in options.items():
        if not isinstance(key, str):
            continue  # the schema reports it
        path = f"sbatch.{key}"
        name = key.removeprefix("--")
        if name in OWN_OPTIONS:
            problems.append(Problem(f"--{name} is set by this program", path, hint=_own_hint(name)))
        elif name != key and name in SBATCH_OPTIONS:
            problems.append(Problem("write it without `--`", path, hint=f"{name}: {value}"))
        elif key not in SBATCH_OPTIONS:
            hint = similar_to(key, SBATCH_OPTIONS)
            problems.append(Problem("not an sbatch option that can be set here", path, value=key[:60], hint=hint))
        elif isinstance(value, str) and not _OPTION_VALUE.fullmatch(value):
            problems.append(
                Problem("expected text without blanks, quotes, `#`, `%` or `$`", path, value=repr(value[:60]))
            )
        elif value is False:
            problems.append(Problem("remove the option instead of setting it to false", path, value="false"))
    return problems
