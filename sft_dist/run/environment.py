"""The software and hardware of a start, recorded with it so that two runs can be compared later. Nothing is imported for it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Packages whose version can change a loss.
PACKAGES = (
    "torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "safetensors", "numpy", "deepspeed", "bitsandbytes",
    "liger-kernel", "flash-attn", "torchao", "pillow", "soundfile",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of those PACKAGES that are installed."""
    return {"python": platform.python_version(), **{name: text for name in PACKAGES if (text := _version(name))}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the processor's model name, or its architecture where the system tells no more."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [text.strip() for key, _, text in (line.partition(":") for line in lines) if key.strip() == "model name"]
    return names[0] if names else platform.machine()
