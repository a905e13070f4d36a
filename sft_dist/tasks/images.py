"""What the vision tasks have in common: image storage, image processors and pixel values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
from PIL.Image import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig

from sft_dist.data.media import MediaError, require_accepted
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.references import model_source
from sft_dist.recipe.schema import Recipe

# Not `datasets.Image`: that copies every file into the table when the table is saved.
IMAGE_FEATURE = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


def load_image_processor(source: str, **options: Any) -> Any:
    """Loads the model's image processor. Transformers uses torchvision where it is installed and Pillow otherwise; both read
    the same file, and pixels differ only by the rounding of their resizing. Raises UserError."""
    try:
        return AutoImageProcessor.from_pretrained(source, **options)
    except ImportError as error:
        message = " ".join(str(error).split())
        hint = "install timm and torchvision, or choose a model that transformers implements itself"
        raise UserError(
            Problem(f"its images cannot be prepared here: {message}", "model.path", value=source, hint=hint)
        ) from error


def config_of(recipe: Recipe, labels: list[str]) -> PreTrainedConfig:
    """Model config of this recipe, for losses that need it when the task has not built a model."""
    source, names = model_source(recipe.model.path), dict(enumerate(labels))
    commit = recipe.model.trust_remote_code
    code = {"trust_remote_code": commit is not None, **({"code_revision": commit} if commit else {})}
    config = AutoConfig.from_pretrained(source, revision=recipe.model.revision or commit, id2label=names, **code)
    for key, value in recipe.model.config.items():
        setattr(config, key, value)
    return config


def require_readable_path(row: dict[str, Any], role: str, number: int) -> None:
    """Raises UserError naming the row when its image may not be opened."""
    try:
        require_accepted(row[role])
    except MediaError as error:
        raise UserError(Problem(f"row {number}: {error}", f"data.columns.{role}")) from None


def pixels_of(processor: Any, images: Sequence[Image]) -> dict[str, Tensor]:
    return dict(processor(images=list(images), return_tensors="pt"))
