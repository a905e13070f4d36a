"""Facts of the task. No torch here: `init`, `plan` and `schema` import this module."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.tasks.base import Columns, Kind, Starters, TaskSettings


class OrdinalTextTask(TaskSettings):
    type: Literal["ordinal-text"] = Field(description="An ordered rating of a text, such as one to five stars.")
    levels: Annotated[int, Field(ge=2, le=100)] = Field(5, description="Number of ratings; the first is 0.")

    work = "ordinal_plugin.work:OrdinalText"
    columns: ClassVar[Columns] = {"text": "required", "label": "required"}
    kinds = (Kind(metrics={"mae": "min", "accuracy": "max", "loss": "min"}, losses=()),)
    starters: ClassVar[Starters] = {
        "ordinal-text": {
            "task.levels": "5",
            "model.path": "sentence-transformers/all-MiniLM-L6-v2",
            "data.source": "./train.csv",
            "data.columns": "{text: text, label: stars}",
            "data.max_length": "128",
            "evaluate.metric": "mae",
        }
    }
