"""What a launcher of ranks leaves in their environment: how many it was asked for, and the folder that torchrun made for them."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from sft_dist.recipe.errors import Problem, UserError


def require_all_ranks(env: Mapping[str, str], launcher_env: Mapping[str, str], launcher_argv: Sequence[str]) -> None:
    """Raises UserError where `accelerate launch` was asked for several processes and started one.

    Without --multi_gpu, Accelerate 1.15 starts one process on a machine with fewer than two GPUs, silently. For several it sets
    MASTER_PORT, but no RANK.
    """
    if "RANK" in env or "ACCELERATE_MIXED_PRECISION" not in env:
        return
    if "MASTER_PORT" in env and "MASTER_PORT" not in launcher_env:
        message = "accelerate launch was asked for several processes, and started one"
        hint = f"on CPUs and on single GPUs, too, only --multi_gpu starts them all: {_with_all_ranks(launcher_argv)}"
        raise UserError(Problem(message, hint=hint))


def _with_all_ranks(argv: Sequence[str]) -> str:
    """The launcher's command with --multi_gpu."""
    verbs = [number for number, word in enumerate(argv) if word in ("launch", "accelerate.commands.launch")]
    arguments = argv[verbs[0] + 1 :] if verbs else ["--num_processes", "N", "-m", "sft_dist.train", "..."]
    words = ["accelerate", "launch", "--multi_gpu", *(word for word in arguments if word != "--cpu")]
    return ("ACCELERATE_USE_CPU=true " if "--cpu" in arguments else "") + shlex.join(words)


def read_launcher() -> tuple[dict[str, str], list[str]]:
    """Returns the environment and the arguments that this process's parent was started with; empty where they cannot be read."""
    folder = Path("/proc") / str(os.getppid())
    with contextlib.suppress(OSError):
        variables = _strings(folder / "environ")
        return dict(text.split("=", 1) for text in variables if "=" in text), _strings(folder / "cmdline")
    return {}, []


def _strings(file: Path) -> list[str]:
    return [os.fsdecode(text) for text in file.read_bytes().split(b"\0") if text]


def remove_torchrun_folder(env: Mapping[str, str]) -> None:
    """Removes this rank's folder for an error file, and those above it that torchrun made, once they are empty.

    The trainer has error files of its own. torchrun never removes its folder: each start would leave one in /tmp.
    """
    if not (file := env.get("TORCHELASTIC_ERROR_FILE")):
        return
    rank, attempt, start, base = list(Path(file).parents)[:4]
    with contextlib.suppress(OSError):  # not empty: another rank's is still there
        for folder in (rank, attempt, start, *([base] if base.name.startswith("torchelastic_") else [])):
            folder.rmdir()
