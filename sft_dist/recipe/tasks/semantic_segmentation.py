"""Facts of semantic segmentation."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.tasks.base import Columns, Kind, Media, Starters, TaskSettings


class SemanticSegmentationTask(TaskSettings):
    type: Literal["semantic-segmentation"] = Field(description="A class for every pixel.")
    ignore_index: Annotated[int, Field(ge=0, le=255)] = Field(
        255, description="Value of the pixels in a mask that have no class and are ignored."
    )

    work = "sft_dist.tasks.semantic_segmentation:SemanticSegmentation"
    columns: ClassVar[Columns] = {"image": "required", "mask": "required"}
    kinds = (
        Kind(
            metrics={"mean_iou": "max", "pixel_accuracy": "max", "mean_accuracy": "max", "dice": "max", "loss": "min"},
            losses=("cross-entropy", "focal", "dice", "iou"),
            classes="many",
        ),
    )
    media: ClassVar[Media] = {"image": "image", "mask": "mask"}
    augmentation = "image"
    packages = (("PIL", "sft-dist[vision]"),)
    starters: ClassVar[Starters] = {
        "semantic-segmentation": {
            "model.path": "nvidia/mit-b0",
            "data.source": "./images-and-masks",
            "evaluate.metric": "mean_iou",
        }
    }
