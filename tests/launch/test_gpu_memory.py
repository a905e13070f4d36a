"""The estimate of memory: weights counted from headers, bytes for each strategy."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from launch.gpu_memory import Sizes, bytes_needed, sizes_of
from sft_dist.recipe.schema import Recipe

SHAPES = {
    "embeddings.weight": (100, 8),
    "encoder.layer.0.q.weight": (8, 8),
    "encoder.layer.0.q.bias": (8,),
    "encoder.layer.1.q.weight": (8, 8),
    "encoder.layer.1.q.bias": (8,),
    "pooler.weight": (8, 8),
}


def write_weights(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Only a header: the estimate must not need the values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_weights(tmp_path / "model.safetensors", SHAPES)
    return tmp_path


def recipe(model: object, tuning: Any = "full", **train: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "demo",
            "task": "text-classification",
            "model": {"path": str(model)},
            "data": {"source": "/data/rows.csv"},
            "tuning": tuning,
            "train": {"lr": 1e-3, **train},
        }
    )


def test_weights_are_counted_from_the_headers(model: Path) -> None:
    assert sizes_of(recipe(model)) == Sizes(all=1008, trained=1008, largest_layer=72, outside=864)


def test_shards_are_counted_through_their_index(tmp_path: Path) -> None:
    names = list(SHAPES)
    parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, inside in parts.items():
        write_weights(tmp_path / file, {name: SHAPES[name] for name in inside})
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = sizes_of(recipe(tmp_path))
    assert found is not None
    assert found.all == 1008


@pytest.mark.parametrize(
    ("tuning", "trained"),
    [
        ({"method": "lora", "r": 2}, 2 * 2 * 16),
        ({"method": "lora", "r": 2, "target_modules": ["k"]}, 0),
        ("bitfit", 16),
        ({"method": "freeze", "train_last_layers": 1}, 72 + 64),
        ({"method": "freeze", "train_last_layers": 0, "train_embeddings": True}, 800 + 64),
        ({"method": "freeze", "train": [r"q\.bias$"]}, 16 + 64),
        ({"method": "prompt"}, 0),
    ],
)
def test_what_is_trained_follows_from_the_tuning(model: Path, tuning: Any, trained: int) -> None:
    found = sizes_of(recipe(model, tuning))
    assert found is not None
    assert found.trained == trained


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff" * 64, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": {}}']
)
def test_a_model_whose_size_is_not_known_is_no_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    assert sizes_of(recipe(tmp_path)) is None
    assert sizes_of(recipe("org/name")) is None


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_weights(tmp_path / "model.safetensors", SHAPES)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    assert sizes_of(recipe(folder)) is None


BILLION = Sizes(all=10**9, trained=10**9, largest_layer=10**7, outside=10**8)


def test_full_training_with_adam_takes_sixteen_bytes_a_weight() -> None:
    assert bytes_needed("single", False, BILLION, recipe("/m"), 1) == 16 * 10**9
    assert bytes_needed("ddp", False, BILLION, recipe("/m"), 8) == 20 * 10**9
    assert (
        bytes_needed("single", False, BILLION, recipe("/m", optimizer={"name": "sgd", "momentum": 0.0}), 1) == 8 * 10**9
    )


def test_frozen_weights_take_four_bytes_and_their_copy_under_autocast_two() -> None:
    lora = Sizes(all=10**9, trained=0, largest_layer=10**7, outside=10**8)
    assert bytes_needed("single", False, lora, recipe("/m", "lora"), 1) == 4 * 10**9
    assert bytes_needed("single", False, lora, recipe("/m", "lora", precision="bf16"), 1) == 6 * 10**9


def test_each_strategy_needs_less_than_the_one_before_and_less_on_more_processes() -> None:
    order = [("ddp", False), ("zero1", False), ("zero2", False), ("zero3", False), ("fsdp2", False), ("fsdp2", True)]
    found = [bytes_needed(name, offload, BILLION, recipe("/m"), 8) for name, offload in order]
    assert found == sorted(found, reverse=True)
    assert bytes_needed("fsdp2", False, BILLION, recipe("/m"), 16) < bytes_needed(
        "fsdp2", False, BILLION, recipe("/m"), 8
    )
