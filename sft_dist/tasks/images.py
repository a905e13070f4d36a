"""What the vision tasks have in common: how pictures are stored, told apart, and made into pixels for the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import datasets
from PIL.Image import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig

from sft_dist.data.media import MediaError, require_accepted
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.references import model_source
from sft_dist.recipe.schema import Recipe

log = logging.getLogger("sft_dist")

# Not `datasets.Image`: that copies every file into the table when the table is saved.
PICTURE = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


def load_image_processor(source: str, **options: Any) -> Any:
    """The model's own. Transformers takes its torchvision form where torchvision is installed and its Pillow form where not;
    the file they are stored in is the same, and pixels differ by the rounding of their resizing. Raises UserError."""
    try:
        return AutoImageProcessor.from_pretrained(source, **options)
    except ImportError as error:
        said = " ".join(str(error).split())
        hint = "install timm and torchvision, or take a model of transformers' own"
        raise UserError(
            Problem(f"its pictures cannot be prepared here: {said}", "model.path", value=source, hint=hint)
        ) from error


def config_of(recipe: Recipe, labels: list[str]) -> PreTrainedConfig:
    """The config a model of this recipe would have, for losses that need it where no model was built by the same task."""
    source, names = model_source(recipe.model.path), dict(enumerate(labels))
    config = AutoConfig.from_pretrained(source, revision=recipe.model.revision, id2label=names)
    for key, value in recipe.model.config.items():
        setattr(config, key, value)
    return config


def require_readable_path(row: dict[str, Any], role: str, number: int) -> None:
    """Raises UserError naming the row when its picture may not be opened."""
    try:
        require_accepted(row[role])
    except MediaError as error:
        raise UserError(Problem(f"row {number}: {error}", f"data.columns.{role}")) from None


def pixels_of(processor: Any, pictures: Sequence[Image]) -> dict[str, Tensor]:
    return dict(processor(images=list(pictures), return_tensors="pt"))


def warn_of_batch_statistics(model: nn.Module) -> None:
    """Batch norm uses the mean and variance of the micro-batch on one process, so that, unlike everything else, it depends on
    how the global batch is divided."""
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if norms:
        log.warning(
            "%s has %d batch norms: its training depends on the micro-batch and the number of processes, not on the global "
            "batch alone; a micro-batch below 8 is risky",
            type(model).__name__, norms,
        )  # fmt: skip
