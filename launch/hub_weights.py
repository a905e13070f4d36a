"""Prints the shapes of a hub model's weights as JSON, from its safetensors headers: those in the Hugging Face cache, else the
hub's. A program, run by `launch.gpu_memory`: the hub's library allows seconds for each request, and a subprocess can be ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from huggingface_hub import get_safetensors_metadata, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from launch.gpu_memory import Shapes, shapes_of_folder

# The first that matches; a gated repository is a kind of missing one in this library.
REASONS: tuple[tuple[type[Exception], str], ...] = (
    (OfflineModeIsEnabled, "offline mode is on, and the model is not in the Hugging Face cache"),
    (GatedRepoError, "access to the model is restricted on the hub"),
    (RepositoryNotFoundError, "the hub has no such model, or it is private"),
    (RevisionNotFoundError, "the hub has no such revision of the model"),
    (NotASafetensorsRepoError, "its weights on the hub are not safetensors"),
)


def cached_shapes(repo: str, revision: str | None) -> Shapes:
    """Returns the shapes of a model that is in the cache; empty when it, or a shard of it, is not."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        file = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(file, str):
            try:
                return shapes_of_folder(Path(file).parent)
            except FileNotFoundError:
                return {}
    return {}


def hub_shapes(repo: str, revision: str | None) -> Shapes:
    """Raises the exceptions of huggingface_hub."""
    files = get_safetensors_metadata(repo, revision=revision).files_metadata.values()
    return {name: tuple(tensor.shape) for file in files for name, tensor in file.tensors.items()}


def reason_of(error: Exception) -> str:
    for kind, reason in REASONS:
        if isinstance(error, kind):
            return reason
    return f"the hub cannot be read ({type(error).__name__})"


def main(repo: str, revision: str | None) -> dict[str, object]:
    """Returns {"shapes": ...}, or {"unknown": reason}."""
    try:
        return {"shapes": cached_shapes(repo, revision) or hub_shapes(repo, revision)}
    except Exception as error:  # whatever goes wrong on the way to the hub, a plan continues without it
        return {"unknown": reason_of(error)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2] or None)))
