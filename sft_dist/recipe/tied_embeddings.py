"""Adapters on embeddings that are also the head: there is one matrix for two layers, so what an adapter adds to either of them
cannot be merged into it. Torch-free: reads the config of a model folder; a model on the hub is looked at when training starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json
from sft_dist.recipe.references import classify, resolve
from sft_dist.recipe.schema import Ia3Tuning, LoraTuning, Recipe
from sft_dist.recipe.tunings import export_form

# Names of embeddings and language model heads: LLaMA and similar models, GPT-2, T5 and BART, GPT-NeoX, BLOOM, Whisper.
TIED_LAYERS = ("embed_tokens", "lm_head", "wte", "shared", "embed_in", "embed_out", "word_embeddings", "proj_out")
_PREFIXES = ("", "model.", "transformer.", "encoder.", "decoder.", "model.encoder.", "model.decoder.")
HINT = (
    "evaluate.export: adapter keeps them apart; or train these layers whole, with tuning.modules_to_save instead of "
    "target_modules"
)


def unmergeable_targets(recipe: Recipe) -> list[Problem]:
    """Returns the targets of the adapter that the merged export cannot hold, as far as the model's folder tells."""
    if not recipe.task.writes_text or export_form(recipe) != "merged":
        return []
    targets = list(_tied_targets(recipe))  # few recipes name any, and then the model's config is read
    return [tied_problem(path, target) for path, target in targets] if targets and _is_tied(recipe.model.path) else []


def tied_problem(path: str, layers: str) -> Problem:
    message = "the model ties its embeddings to its head, so adapters on these layers cannot be merged into the export"
    return Problem(message, path, value=layers, hint=HINT)


def _tied_targets(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yields (key path, target) of those that name an embedding or a head."""
    tuning = recipe.tuning
    targets = tuning.target_modules if isinstance(tuning, (LoraTuning, Ia3Tuning)) else None
    if isinstance(targets, str):
        if targets != "all-linear" and any(
            _matches(targets, prefix + name) for prefix in _PREFIXES for name in TIED_LAYERS
        ):
            yield "tuning.target_modules", targets
        return
    for number, target in enumerate(targets or ()):
        if target.rpartition(".")[2] in TIED_LAYERS:
            yield f"tuning.target_modules.{number}", target


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False  # refused where the layers are looked up


def _is_tied(path: str) -> bool:
    try:
        folder = resolve(classify(path, Path.cwd()))
    except UserError:
        return False  # named by `check_references`
    config = read_json(folder / "config.json") if isinstance(folder, Path) else None
    # Where it is missing, transformers 4 wrote the file, which omitted the default: true.
    return isinstance(config, dict) and bool(config.get("tie_word_embeddings", True))
