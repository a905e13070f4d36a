"""The tasks that a recipe can name. A new task is a module here, its class in `TASKS`, and a module in `sft_dist/tasks/`.
Other installed packages provide further tasks (`installed.py`)."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, TypeAlias, get_args

from pydantic import Field

from sft_dist.recipe.section import shorthand
from sft_dist.recipe.tasks.audio_classification import AudioClassificationTask
from sft_dist.recipe.tasks.base import TaskSettings
from sft_dist.recipe.tasks.image_classification import ImageClassificationTask
from sft_dist.recipe.tasks.installed import InstalledTasks
from sft_dist.recipe.tasks.instruction_tuning import InstructionTuningTask
from sft_dist.recipe.tasks.object_detection import ObjectDetectionTask
from sft_dist.recipe.tasks.semantic_segmentation import SemanticSegmentationTask
from sft_dist.recipe.tasks.speech_recognition import SpeechRecognitionTask
from sft_dist.recipe.tasks.text_classification import TextClassificationTask
from sft_dist.recipe.tasks.text_to_text import TextToTextTask
from sft_dist.recipe.tasks.token_classification import TokenClassificationTask

_CLASSES: tuple[type[TaskSettings], ...] = (
    TextClassificationTask,
    TokenClassificationTask,
    TextToTextTask,
    InstructionTuningTask,
    ImageClassificationTask,
    ObjectDetectionTask,
    SemanticSegmentationTask,
    SpeechRecognitionTask,
    AudioClassificationTask,
)
TASKS: dict[str, type[TaskSettings]] = {
    name: settings for settings in _CLASSES for name in get_args(settings.model_fields["type"].annotation)
}

INSTALLED_TASKS = InstalledTasks(tuple(TASKS))

if TYPE_CHECKING:
    Task: TypeAlias = TaskSettings
else:
    _BuiltinTask = Annotated[reduce(or_, _CLASSES), Field(discriminator="type")]
    Task = Annotated[_BuiltinTask, INSTALLED_TASKS, shorthand("type")]
