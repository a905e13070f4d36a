"""Facts of image classification."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.tasks.base import Columns, Media, Starters
from sft_dist.recipe.tasks.classification import MULTI_LABEL, ONE_CLASS_METRICS, SINGLE_LABEL, ClassificationSettings

Share = Annotated[float, Field(ge=0, le=10)]


class ImageClassificationTask(ClassificationSettings):
    type: Literal["image-classification"] = Field(description="One class or several for an image.")
    problem: Literal["single-label", "multi-label"] = Field(
        "single-label", description="single-label: one class per image. multi-label: any number of classes."
    )
    mixup: Share = Field(
        0.0, description="Mix pairs of training images and labels (arXiv 1710.09412) by a Beta(x, x) share. 0: off."
    )
    cutmix: Share = Field(
        0.0, description="Paste a part of one training image into another (arXiv 1905.04899), Beta(x, x). 0: off."
    )

    work = "sft_dist.tasks.image_classification:ImageClassification"
    columns: ClassVar[Columns] = {"image": "required", "label": "required"}
    kinds = (
        replace(SINGLE_LABEL, metrics={"accuracy": "max", "top5_accuracy": "max", **ONE_CLASS_METRICS}),
        MULTI_LABEL,
    )
    media: ClassVar[Media] = {"image": "image"}
    augmentation = "image"
    packages = (("PIL", "sft-dist[vision]"),)
    starters: ClassVar[Starters] = {
        "image-classification": {
            "task.problem": "single-label",
            "model.path": "google/vit-base-patch16-224-in21k",
            "data.source": "./images",
            "evaluate.metric": "accuracy",
        }
    }

    def mixing(self) -> dict[str, float]:
        return {"mixup": self.mixup, "cutmix": self.cutmix}
