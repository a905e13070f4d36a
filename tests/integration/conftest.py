"""Folders with what the data check needs of a model: its config and its processor; no weights."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """MiniLM's tokenizer with an end-of-text token, as a chat needs one."""
    from transformers import AutoConfig, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "chat"
    AutoTokenizer.from_pretrained(tiny_model, eos_token="[SEP]").save_pretrained(folder)
    AutoConfig.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTImageProcessor

    folder = tmp_path_factory.mktemp("models") / "vit"
    ViTConfig(image_size=32, num_hidden_layers=1).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It finds four boxes at most."""
    from transformers import YolosConfig, YolosImageProcessor

    folder = tmp_path_factory.mktemp("models") / "yolos"
    YolosConfig(num_detection_tokens=4, num_hidden_layers=1).save_pretrained(folder)
    YolosImageProcessor(size={"height": 48, "width": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sound_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.sft_dist.tasks.tiny_audio import wav2vec2

    return wav2vec2(tmp_path_factory.mktemp("models") / "wav2vec2")
