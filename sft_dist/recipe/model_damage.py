"""Why a file of a model folder cannot be read, found without importing what reads it: an interrupted download, a pointer of Git
LFS, a file that a script has written by hand. What a plan can tell, no GPU has to wait for."""

from __future__ import annotations

import json
import os
import struct
from math import prod
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import Problem

LARGEST_HEADER = 100_000_000  # safetensors' own limit
# Bits of an element, https://github.com/huggingface/safetensors (tensor.rs)
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64,
    "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
# Files of transformers that hold one object each.
OBJECTS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "preprocessor_config.json", "processor_config.json", "generation_config.json", "adapter_config.json",
)  # fmt: skip
HINT = "download or save the model again"


def config_problems(folder: Path) -> list[Problem]:
    """What is wrong with the config of a model folder, by what every config has. A folder of adapters has none."""
    file = folder / "config.json"
    fault = object_fault(file) or _label_fault(file) if file.exists() else ""
    return [Problem(fault, "model.path", value=str(folder), hint=HINT)] if fault else []


def weight_file_problems(folder: Path) -> list[Problem]:
    """What is wrong with the first safetensors file of a folder that is damaged."""
    faults = filter(None, map(weights_fault, sorted(folder.glob("*.safetensors"))))
    return [Problem(fault, "model.path", value=str(folder), hint=HINT) for fault in faults][:1]


def broken_file(folder: Path) -> str:
    """The first file of a model folder that cannot be read, and why; empty where all can."""
    objects = [folder / name for name in OBJECTS if (folder / name).exists()]
    if fault := next(filter(None, map(object_fault, objects)), ""):
        return fault
    problems = [*config_problems(folder), *weight_file_problems(folder)]
    return problems[0].message if problems else ""


def object_fault(file: Path) -> str:
    """Why a file does not hold one JSON object, with line and column; empty where it does."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return f"{file}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
    except UnicodeDecodeError as error:
        return f"{file}, byte {error.start}: not UTF-8"
    except RecursionError:
        return f"{file}: nested too deeply"
    except OSError as error:
        return f"{file}: {error.strerror}"
    return "" if isinstance(value, dict) else f"{file}: expected a JSON object, found {_noun(value)}"


def _noun(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number or truth value")


def _label_fault(file: Path) -> str:
    names = json.loads(file.read_text(encoding="utf-8")).get("id2label")
    is_numbered = isinstance(names, dict) and all(key.isdecimal() for key in names)
    return "" if names is None or is_numbered else f"{file}: id2label is an object with class numbers as keys"


# ── safetensors ─────────────────────────────────────────────────────────────────────────────────────────────────────
def read_header(file: Path) -> dict[str, Any]:
    """Returns tensor name -> dtype, shape, data_offsets of a safetensors file, by its beginning alone. Raises OSError, and
    ValueError with the file's name. `safetensors.safe_open` would import numpy, which takes 0.17 s of a plan."""
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(8)
        if start == b"version ":
            raise ValueError(f"{file}: a pointer of Git LFS instead of the weights (git lfs pull)")
        (length,) = struct.unpack("<Q", start.ljust(8, b"\0"))
        if len(start) < 8 or length > LARGEST_HEADER or 8 + length > size:
            raise ValueError(f"{file}: not a safetensors file, or cut off ({size:,} bytes)")
        content = stream.read(length)
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: the header is not JSON ({' '.join(str(error).split())})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{file}: the header is {_noun(header)}, not a JSON object")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def weights_fault(file: Path) -> str:
    """Why a safetensors file cannot be read; empty where it can."""
    try:
        header = read_header(file)
        spans = sorted(_span(file, name, entry) for name, entry in header.items())
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
    except OSError as error:
        return f"{file}: {error.strerror}"
    except ValueError as error:
        return str(error)
    end = 0
    for start, stop, name in spans:
        if start != end:
            return f"{file}: the bytes of {name!r} do not follow those of the tensor before it"
        end = stop
    size = file.stat().st_size - 8 - length
    return "" if size == end else f"{file}: {size:,} bytes of weights, but the header names {end:,}"


def _span(file: Path, name: str, entry: Any) -> tuple[int, int, str]:
    """Returns (first byte, byte after the last, name) of a tensor. Raises ValueError."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if dtype not in list(BITS):
        raise ValueError(f"{file}: {name!r} has the unknown dtype {dtype!r}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{file}: {name!r} has no valid shape or place")
    start, stop = offsets
    if 8 * (stop - start) != prod(shape) * BITS[dtype]:
        raise ValueError(f"{file}: {name!r} has {stop - start:,} bytes, which are not {shape} values of {dtype}")
    return start, stop, name


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
