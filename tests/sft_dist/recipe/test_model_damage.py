"""Files of a model folder that cannot be read are named with what is wrong, before anything is loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sft_dist.recipe.model_damage import BITS, broken_file, config_problems, object_fault, read_header, weights_fault

Header = dict[str, Any]


def packed(header: Header | bytes, weights: bytes = b"\0" * 20, length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + weights


def header(**changes: Any) -> Header:
    first = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    return {"a": {**first, **changes}, "b": {"dtype": "I16", "shape": [2], "data_offsets": [16, 20]}}


BROKEN = {
    "empty": (b"", "cut off (0 bytes)"),
    "seven bytes": (b"\x01" * 7, "cut off (7 bytes)"),
    "header cut": (packed(header())[:60], "cut off (60 bytes)"),
    "weights cut": (packed(header())[:-1], "19 bytes of weights, but the header names 20"),
    "weights longer": (packed(header()) + b"x", "21 bytes of weights, but the header names 20"),
    "huge length": (packed(header(), length=2**62), "not a safetensors file"),
    "length beyond the end": (packed(header(), length=5000), "cut off"),
    "not JSON": (packed(b"{nope"), "the header is not JSON"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "the header is not JSON"),
    "nested": (packed(b'{"a":' * 100_000), "the header is not JSON"),
    "a list": (packed(b"[]"), "the header is a list"),
    "dtype": (packed(header(dtype="F33")), "'a' has the unknown dtype 'F33'"),
    "dtype of another type": (packed(header(dtype=["F32"])), "'a' has the unknown dtype ['F32']"),
    "shape": (packed(header(shape=[3, 3])), "'a' has 16 bytes, which are not [3, 3] values of F32"),
    "shape of another type": (packed(header(shape="4")), "'a' has no valid shape or place"),
    "negative shape": (packed(header(shape=[-2, -2])), "'a' has no valid shape or place"),
    "negative place": (packed(header(data_offsets=[-16, 0])), "'a' has no valid shape or place"),
    "overlap": (packed(header(data_offsets=[4, 20])), "the bytes of 'a' do not follow"),
    "no shape": (packed({"a": {"dtype": "F32"}}), "'a' has no valid shape or place"),
    "an entry of another type": (packed({"a": 5}), "'a' has the unknown dtype None"),
    "zeros": (b"\0" * 1000, "the header is not JSON"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), BROKEN.values(), ids=list(BROKEN))
def test_a_damaged_safetensors_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(SafetensorError):  # what is refused here, the library refuses
        safe_open(str(file), "pt").__enter__()
    fault = weights_fault(file)
    assert fault.startswith(f"{file}: ")
    assert expected in fault
    assert broken_file(tmp_path) == fault


def test_a_folder_in_the_place_of_the_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert weights_fault(tmp_path / "model.safetensors").endswith("model.safetensors: Is a directory")


def test_what_the_library_writes_is_accepted(tmp_path: Path) -> None:
    kinds = [
        getattr(torch, name) for name in ("bool", "uint8", "int64", "float16", "bfloat16", "float64", "float8_e4m3fn")
    ]
    tensors = {str(kind): torch.zeros(3, 5).to(kind) for kind in kinds} | {
        "none": torch.zeros(0, 4),
        "one": torch.tensor(1),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert weights_fault(tmp_path / "model.safetensors") == ""
    assert {name: tuple(entry["shape"]) for name, entry in read_header(tmp_path / "model.safetensors").items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert BITS["BF16"] == 16


def test_the_real_model_is_accepted(tiny_model: Path) -> None:
    assert broken_file(tiny_model) == ""


def _as_text(text: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(text) and None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_as_text(""), "line 1, column 1: not JSON (Expecting value)"),
        (_as_text('{\n  "a": 1,\n}'), "line 3, column 1: not JSON"),
        (_as_text("[]"), "expected a JSON object, found a list"),
        (_as_text("null"), "expected a JSON object, found null"),
        (_as_text('{"a":' * 100_000), "nested too deeply"),
        (lambda file: file.write_bytes(b'{"a": "\xff"}'), "byte 7: not UTF-8"),
        (lambda file: file.mkdir(), "Is a directory"),
        (_as_text('{"id2label": ["a"]}'), "id2label is an object with class numbers as keys"),
        (_as_text('{"id2label": {"x": "a"}}'), "id2label is an object with class numbers as keys"),
    ],
)
def test_a_broken_config_is_named_with_its_place(tmp_path: Path, make: Callable[[Path], Any], expected: str) -> None:
    make(tmp_path / "config.json")
    (problem,) = config_problems(tmp_path)
    assert problem.message.startswith(str(tmp_path / "config.json"))
    assert expected in problem.message
    assert problem.path == "model.path"


def test_a_config_without_names_of_classes_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"id2label": {"0": "a"}}')
    assert object_fault(tmp_path / "config.json") == ""
    assert config_problems(tmp_path) == []
