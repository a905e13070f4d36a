"""The estimate of memory: weights counted from headers, bytes for each strategy."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from launch import gpu_memory
from launch.gpu_memory import Sizes, SizesUnknown, bytes_needed, sizes_of
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


def write_shards(folder: Path) -> None:
    names = list(SHAPES)
    shards = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, inside in shards.items():
        write_weights(folder / file, {name: SHAPES[name] for name in inside})
    index = {"weight_map": {name: file for file, inside in shards.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_counted_through_their_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    assert sizes_of(recipe(tmp_path)).all == 1008


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
    assert sizes_of(recipe(model, tuning)).trained == trained


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff" * 64, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": {}}']
)
def test_weights_that_cannot_be_counted_are_unknown(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SizesUnknown, match="not valid safetensors"):
        sizes_of(recipe(tmp_path))


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_weights(tmp_path / "model.safetensors", SHAPES)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(SizesUnknown):
        sizes_of(recipe(folder))


# ── models on the hub ───────────────────────────────────────────────────────────────────────────────────────────────
class Hub:
    """A server that answers as the hub does for the files of one repository, `org/name`."""

    def __init__(self, folder: Path, delay_s: float = 0.0) -> None:
        self.requests: list[str] = []
        self.released = Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, body: bool) -> None:
                hub.requests.append(self.path)
                if delay_s:
                    hub.released.wait(delay_s)
                file = folder / self.path.rpartition("/")[2]
                exists = self.path.startswith("/org/name/resolve/main/") and file.is_file()
                content = file.read_bytes() if exists else b""
                self.send_response(200 if exists else 404)
                if not exists:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", '"etag"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def start_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    hubs = []

    def start(folder: Path, delay_s: float = 0.0, offline: str = "0") -> Hub:
        hubs.append(Hub(folder, delay_s))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hubs[-1].server.server_port}")
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
        monkeypatch.setattr(
            gpu_memory, "HUB_TIMEOUT_S", 120.0
        )  # a busy machine imports for longer than a plan should wait
        gpu_memory._hub_shapes.cache_clear()
        return hubs[-1]

    yield start
    gpu_memory._hub_shapes.cache_clear()
    for hub in hubs:
        hub.close()


@pytest.mark.slow
def test_a_hub_model_is_counted_from_its_header(model: Path, start_hub: Callable[..., Hub]) -> None:
    start_hub(model)
    assert sizes_of(recipe("org/name")) == Sizes(all=1008, trained=1008, largest_layer=72, outside=864)


@pytest.mark.slow
def test_a_sharded_hub_model_is_counted_from_all_headers(tmp_path: Path, start_hub: Callable[..., Hub]) -> None:
    write_shards(tmp_path)
    start_hub(tmp_path)
    assert sizes_of(recipe("org/name")).all == 1008


@pytest.mark.slow
def test_offline_mode_asks_nothing_and_says_so(model: Path, start_hub: Callable[..., Hub]) -> None:
    hub = start_hub(model, offline="1")
    with pytest.raises(SizesUnknown, match="offline mode is on"):
        sizes_of(recipe("org/name"))
    assert hub.requests == []


@pytest.mark.slow
def test_offline_a_cached_hub_model_is_counted(tmp_path: Path, start_hub: Callable[..., Hub]) -> None:
    start_hub(tmp_path, offline="1")
    repo = tmp_path / "huggingface/hub/models--org--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0" * 40)
    write_shards(snapshot)
    assert sizes_of(recipe("org/name")).all == 1008


@pytest.mark.slow
def test_a_hub_that_does_not_answer_delays_a_plan_only_briefly(
    model: Path, start_hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    start_hub(model, delay_s=60)
    monkeypatch.setattr(gpu_memory, "HUB_TIMEOUT_S", 1.0)
    with pytest.raises(SizesUnknown, match="did not answer within 1 s"):
        sizes_of(recipe("org/name"))


@pytest.mark.slow
def test_a_hub_model_without_safetensors_is_unknown(tmp_path: Path, start_hub: Callable[..., Hub]) -> None:
    start_hub(tmp_path)
    with pytest.raises(SizesUnknown, match="not safetensors"):
        sizes_of(recipe("org/name"))


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
    assert bytes_needed("single", False, lora, recipe("/m", "full", precision="bf16"), 1) == 6 * 10**9
    halved, rest = 9 * 10**8, 10**8  # layers, and what is in none
    assert bytes_needed("single", False, lora, recipe("/m", "lora", precision="bf16"), 1) == 2 * halved + 6 * rest
    dora = recipe("/m", {"method": "lora", "dora": True}, precision="bf16")
    assert bytes_needed("single", False, lora, dora, 1) == 6 * 10**9


def test_layers_are_gathered_in_16_bits_by_fsdp2_alone() -> None:
    llama = Sizes(all=8 * 10**9, trained=0, largest_layer=2 * 10**8, outside=10**9)
    lora = recipe("/m", "lora", precision="bf16")
    halved, rest = 7 * 10**9, 10**9
    gathered = 10 * 2 * 10**8 + 8 * rest + 2 * rest
    assert bytes_needed("fsdp2", False, llama, lora, 8) == (2 * halved + 4 * rest) // 8 + gathered
    dora = recipe("/m", {"method": "lora", "dora": True}, precision="bf16")
    gathered_whole = 12 * 2 * 10**8 + 8 * rest + 2 * 8 * 10**9
    assert bytes_needed("fsdp2", False, llama, dora, 8) == 4 * 8 * 10**9 // 8 + gathered_whole
    assert bytes_needed("zero3", False, llama, lora, 8) == bytes_needed("fsdp2", False, llama, dora, 8)


def test_each_strategy_needs_less_than_the_one_before_and_less_on_more_processes() -> None:
    order = [("ddp", False), ("zero1", False), ("zero2", False), ("zero3", False), ("fsdp2", False), ("fsdp2", True)]
    found = [bytes_needed(name, offload, BILLION, recipe("/m"), 8) for name, offload in order]
    assert found == sorted(found, reverse=True)
    assert bytes_needed("fsdp2", False, BILLION, recipe("/m"), 16) < bytes_needed(
        "fsdp2", False, BILLION, recipe("/m"), 8
    )
