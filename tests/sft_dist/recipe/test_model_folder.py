"""What a plan says of a model whose folder, or copy in the Hugging Face cache, is on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft_dist.recipe import model_folder as module
from sft_dist.recipe.load import load
from sft_dist.recipe.model_folder import (
    cached_problems,
    length_warnings,
    model_folder,
    unusable_targets,
    usable_positions,
)
from sft_dist.recipe.schema import Recipe
from tests.sft_dist.recipe.recipe_texts import GOOD, write

COMMIT = "0123456789" * 4


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `me/model` in an own cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "cache/models--me--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(COMMIT)
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def recipe_of(folder: Path, text: str = GOOD, **files: dict[str, Any]) -> Recipe:
    (folder / "model").mkdir()
    for name, content in files.items():
        (folder / "model" / f"{name}.json").write_text(json.dumps(content))
    module._read.cache_clear()
    return load(write(folder, text))


def test_a_model_of_the_hub_is_found_in_the_cache_by_branch_and_by_commit(hub: Path) -> None:
    assert model_folder("me/model") == model_folder("me/model", COMMIT) == hub
    assert model_folder("me/model", "v2") is None
    assert model_folder("me/other") is None


def test_a_tokenizer_in_the_cache_is_checked_as_a_local_one(hub: Path) -> None:
    assert cached_problems("me/model", None, "model.tokenizer") == []
    (hub / "added_tokens.json").write_text(json.dumps({"huge": 10**8}))
    (problem,) = cached_problems("me/model", None, "model.tokenizer")
    assert (problem.path, "id 100,000,000" in problem.message) == ("model.tokenizer", True)
    assert cached_problems("./model", None, "model.tokenizer") == []


@pytest.mark.parametrize(
    ("tokenizer", "config", "expected"),
    [
        (
            100,
            {},
            "100 tokens are the model's limit, so data.max_length: 256 has no effect: longer texts are cut at 100",
        ),
        (10**30, {}, None),
        (512, {"max_position_embeddings": 512}, None),
        (
            None,
            {"max_position_embeddings": 128},
            "the model has 128 positions, and longer texts do not fit: data.max_length: 128",
        ),
    ],
)
def test_a_plan_says_where_texts_are_cut_below_what_the_recipe_asks(
    tmp_path: Path, tokenizer: int | None, config: dict[str, Any], expected: str | None
) -> None:
    files = {"config": config, "tokenizer_config": {} if tokenizer is None else {"model_max_length": tokenizer}}
    assert list(length_warnings(recipe_of(tmp_path, **files))) == ([] if expected is None else [expected])


def test_positions_after_the_padding() -> None:
    assert usable_positions({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}) == 512
    assert usable_positions({"model_type": "gpt2", "n_positions": 1024}) == 1024
    assert usable_positions({"model_type": "t5", "n_positions": 512}) is None


SPEECH = """\
task: speech-recognition
model: {path: ./model}
data: {source: ./train.csv}
tuning: {method: lora, target_modules: TARGETS}
train: {epochs: 1, lr: 1e-4}
"""


@pytest.mark.parametrize(
    ("model_type", "targets", "paths"),
    [
        ("whisper", "[q_proj, conv1]", ["tuning.target_modules.1"]),
        ("whisper", "[encoder.conv2]", ["tuning.target_modules.0"]),
        ("whisper", "'.*conv[12]'", ["tuning.target_modules"]),
        ("whisper", "'.*_proj'", []),
        ("whisper", "all-linear", []),
        ("wav2vec2", "[conv1]", []),
    ],
)
def test_adapters_on_whispers_convolutions_are_refused(
    tmp_path: Path, model_type: str, targets: str, paths: list[str]
) -> None:
    recipe = recipe_of(tmp_path, SPEECH.replace("TARGETS", targets), config={"model_type": model_type})
    assert [problem.path for problem in unusable_targets(recipe)] == paths
