"""What the folder of a model says, where this machine has one: a local folder, or what the Hugging Face cache holds of a model on the
hub. Torch-free, so that a plan can tell it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json
from sft_dist.recipe.model_files import folder_problems
from sft_dist.recipe.references import classify, resolve
from sft_dist.recipe.schema import Ia3Tuning, LoraTuning, QloraTuning, Recipe, Tuning
from sft_dist.recipe.tunings import virtual_tokens

# RoBERTa and similar models number positions from the one after that of the padding token.
_POSITIONS_AFTER_PADDING = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "mpnet", "longformer", "data2vec-text",
    "ibert", "luke", "xmod", "layoutlmv3",
)  # fmt: skip
# The model reads the strides of its convolutions, which PEFT's layers around them do not have.
_WHISPER_CONVOLUTIONS = tuple(f"{prefix}encoder.{name}" for prefix in ("model.", "") for name in ("conv1", "conv2"))


def model_folder(text: str, revision: str | None = None) -> Path | None:
    """Returns the folder that a model or tokenizer is loaded from; None where this machine has none."""
    reference = classify(text, Path.cwd())
    if reference.kind == "hub":
        return _cached_folder(text, revision or "main")
    try:
        folder = resolve(reference)
    except UserError:
        return None  # named by `check_references`
    return folder if isinstance(folder, Path) and folder.is_dir() else None


def _cached_folder(repo: str, revision: str) -> Path | None:
    """The layout is that of huggingface_hub, whose function that looks there takes 0.25 s to import."""
    from huggingface_hub.constants import HF_HUB_CACHE  # most plans need no model of the hub

    home = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    try:
        commit = (home / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    folder = home / "snapshots" / commit
    return folder if folder.is_dir() else None


def model_config(recipe: Recipe) -> Mapping[str, Any]:
    """Returns the model's config with the recipe's values in it; empty where this machine has none."""
    config = _read(recipe.model.path, recipe.model.revision, "config.json")
    return {**config, **recipe.model.config} if config else {}


@lru_cache(maxsize=256)
def _read(text: str, revision: str | None, name: str) -> Mapping[str, Any]:
    folder = model_folder(text, revision)
    content = read_json(folder / name) if folder else None
    return content if isinstance(content, dict) else {}


# ── length ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def length_warnings(recipe: Recipe) -> Iterator[str]:
    """Yields what to say where `data.max_length` is more than the model or its tokenizer allows."""
    if recipe.task.media:
        return
    model, max_length = recipe.model, recipe.data.max_length
    longest = _read(model.tokenizer or model.path, model.revision, "tokenizer_config.json").get("model_max_length")
    positions = usable_positions(model_config(recipe))
    if isinstance(longest, int) and 0 < longest < max_length:
        yield (
            f"{longest} tokens are the model's limit, so data.max_length: {max_length} has no effect: longer texts are cut at"
            f" {longest}"
        )
        max_length = longest
    positions = None if positions is None else positions - virtual_tokens(recipe.tuning)
    if positions is not None and 0 < positions < max_length:
        yield f"the model has {positions} positions, and longer texts do not fit: data.max_length: {positions}"


def usable_positions(config: Mapping[str, Any]) -> int | None:
    """Returns tokens of the longest text that the model has positions for; None where its config names no limit."""
    model_type, pad = config.get("model_type"), config.get("pad_token_id")
    old_name = config.get("n_positions") if model_type == "gpt2" else None  # T5's file has it too, and no limit
    positions = config.get("max_position_embeddings", old_name)
    if not isinstance(positions, int) or positions <= 0:
        return None
    if model_type not in _POSITIONS_AFTER_PADDING:
        return positions
    return positions - (1 if pad is None else pad) - 1  # 1: these models' default


# ── adapters ────────────────────────────────────────────────────────────────────────────────────────────────────────
def unusable_targets(recipe: Recipe) -> list[Problem]:
    """Returns the targets of the adapter with which the model cannot run, as far as the model's folder tells."""
    if _targets(recipe.tuning) is None:
        return []  # the layers that PEFT chooses are none of these
    return list(convolution_targets(recipe.tuning, model_config(recipe).get("model_type")))


def convolution_targets(tuning: Tuning, model_type: object) -> Iterator[Problem]:
    """Yields the targets of an adapter that are Whisper's first layers."""
    targets, key = _targets(tuning), "tuning.target_modules"
    if model_type != "whisper" or targets in (None, "all-linear"):
        return
    is_pattern = isinstance(targets, str)
    by_path = (
        {key: targets} if is_pattern else {f"{key}.{number}": target for number, target in enumerate(targets or ())}
    )
    for path, target in by_path.items():
        if any(_names_layer(str(target), layer, is_pattern) for layer in _WHISPER_CONVOLUTIONS):
            message = "Whisper cannot run with an adapter on the convolutions conv1 and conv2 of its encoder"
            hint = "leave them out; or train them whole: tuning.modules_to_save: [conv1, conv2]"
            yield Problem(message, path, value=str(target), hint=hint)


def _targets(tuning: Tuning) -> str | list[str] | None:
    return tuning.target_modules if isinstance(tuning, (LoraTuning, QloraTuning, Ia3Tuning)) else None


def _names_layer(target: str, layer: str, is_pattern: bool) -> bool:
    """Whether PEFT takes a target for this layer: a pattern of its whole name, or the end of it."""
    if not is_pattern:
        return layer == target or layer.endswith(f".{target}")
    try:
        return re.fullmatch(target, layer) is not None
    except re.error:
        return False  # refused where the layers are looked up


def cached_problems(text: str, revision: str | None, path: str) -> list[Problem]:
    """Returns why the files that the cache holds of a hub model may not be read."""
    folder = _cached_folder(text, revision or "main") if classify(text, Path.cwd()).kind == "hub" else None
    return folder_problems(folder, path) if folder else []
