"""Facts of object detection."""

from typing import ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.tasks.base import Columns, Kind, Media, Probability, Starters, TaskSettings


class ObjectDetectionTask(TaskSettings):
    type: Literal["object-detection"] = Field(description="Boxes with classes in an image.")
    threshold: Probability = Field(0.5, description="Lowest score of the boxes that `predict` prints.")

    work = "sft_dist.tasks.object_detection:ObjectDetection"
    columns: ClassVar[Columns] = {
        "image": "required",
        "objects": "required",
        "width": "if present",
        "height": "if present",
    }
    kinds = (Kind({"map": "max", "map50": "max", "map75": "max", "loss": "min"}, ("detection",), "many"),)
    media: ClassVar[Media] = {"image": "image"}
    augmentation = "image"
    packages = (("PIL", "sft-dist[vision]"), ("pycocotools", "sft-dist[vision]"))
    starters: ClassVar[Starters] = {
        "object-detection": {
            "model.path": "hustvl/yolos-tiny",
            "data.source": "./annotations.json",
            "evaluate.metric": "map",
        }
    }
