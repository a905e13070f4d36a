"""The mean of some checkpoints of a run, as a folder like theirs: `runs/my/0a1b2c3d4e/averages/mean-0123456789/`.

Its manifest names the members and their fingerprints, so that a mean of checkpoints that have changed is noticed, and so that the same
members make the same bytes. Tensors are averaged one at a time in fp64, and stored in their own type. Integers, such as the number of
batches that a batch norm has seen, are those of the newest member; its running statistics are averaged like weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sft_dist.checkpoints.store import MANIFEST, Checkpoint, describe, verify, write_manifest
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json, write_json
from sft_dist.run.candidates import candidate_name
from sft_dist.run.folder import RunFolder

Layout = dict[
    str, dict[str, Any]
]  # name of a tensor -> dtype, shape and data_offsets, as in the header of a safetensors file

_WRITING = ".writing-"


def identity(members: Sequence[Checkpoint]) -> dict[str, list[Any]]:
    """Returns what a mean is made of, as manifests and records name it. Raises FileNotFoundError where a member is gone."""
    return {
        "members": [member.step for member in members],
        "member_fingerprints": [member.fingerprint() for member in members],
    }


def make_mean(folder: RunFolder, steps: Sequence[int]) -> Checkpoint:
    """Returns the mean of the checkpoints of these steps, in their order; written aside and renamed, unless it is there.

    Raises UserError where they cannot be averaged, and FileNotFoundError where one is gone: training deletes old checkpoints.
    """
    members = [Checkpoint(folder.checkpoint(step), step) for step in steps]
    mean = Checkpoint(folder.candidate(steps[-1], steps), steps[-1])
    source = identity(members)
    if source.items() <= (read_json(mean.path / MANIFEST) or {}).items() and not verify(mean):
        return mean
    staging_dir = folder.averages / f"{_WRITING}{mean.path.name}"
    for path in (staging_dir, mean.path):  # of a killed process, or of other members
        shutil.rmtree(path, ignore_errors=True)
    staging_dir.mkdir(mode=0o700, parents=True)
    try:
        _write_model(staging_dir / "model", members)
        write_json(staging_dir / "trainer.json", {"labels": members[-1].trainer_state()["labels"]})
        files = describe(staging_dir, [path for path in sorted(staging_dir.rglob("*")) if path.is_file()])
        write_manifest(folder, mean.step, staging_dir, files, source)
        os.rename(staging_dir, mean.path)
    finally:
        shutil.rmtree(staging_dir, ignore_errors=True)
    return mean


def remove_means(folder: RunFolder, removable: Callable[[str], bool]) -> None:
    """Removes means, and what a killed process was writing of them, whose names are removable."""
    for path in folder.averages.iterdir() if folder.averages.is_dir() else ():
        if removable(path.name.removeprefix(_WRITING)):
            shutil.rmtree(path, ignore_errors=True)


def _write_model(target: Path, members: Sequence[Checkpoint]) -> None:
    """Copies the newest member's folder, and replaces the values in its weights."""
    shutil.copytree(members[-1].model, target)
    names = [sorted(path.name for path in member.model.glob("*.safetensors")) for member in members]
    for member, files in zip(members, names, strict=True):
        if files != names[-1]:
            raise _refusal(
                members, f"step {member.step} has the files {', '.join(files)}, others {', '.join(names[-1])}"
            )
    for name in names[-1]:
        _write_means(target / name, [member.model / name for member in members], members)


def _write_means(target: Path, sources: Sequence[Path], members: Sequence[Checkpoint]) -> None:
    """Replaces the values of floating-point tensors, each where it lies in the file, so that memory never holds a model."""
    layouts = [_layout(source)[0] for source in sources]
    for member, layout in zip(members, layouts, strict=True):
        if difference := _difference(layout, layouts[-1]):
            raise _refusal(members, f"steps {member.step} and {members[-1].step} differ: {difference}")
    layout, start = _layout(target)
    with ExitStack() as stack, target.open("r+b") as file:
        opened = [stack.enter_context(safe_open(source, "pt")) for source in sources]
        for name, entry in layout.items():
            if entry["dtype"].startswith(("F", "BF")):
                file.seek(start + entry["data_offsets"][0])
                file.write(_bytes_of(mean_of(weights.get_tensor(name) for weights in opened)))


def mean_of(tensors: Iterator[Tensor]) -> Tensor:
    """Sums in fp64 and rounds once, to the type of the tensors."""
    first = next(tensors)
    total, number = first.double(), 1
    for tensor in tensors:
        total, number = total + tensor.double(), number + 1
    return (total / number).to(first.dtype)


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _layout(file: Path) -> tuple[Layout, int]:
    """Returns the header of a safetensors file without its metadata, and where the values begin."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _difference(first: Layout, second: Layout) -> str:
    if names := first.keys() ^ second.keys():
        return f"only one of them has {min(names)}"
    for name, entry in first.items():
        types = [f"{layout['dtype']} {layout['shape']}" for layout in (entry, second[name])]
        if types[0] != types[1]:
            return f"{name} is {types[0]} and {types[1]}"
    return ""


def _refusal(members: Sequence[Checkpoint], reason: str) -> UserError:
    steps = [member.step for member in members]
    return UserError(f"{members[-1].run_folder.path}: the {candidate_name(steps[-1], steps)} cannot be made: {reason}")
