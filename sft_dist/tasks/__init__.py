"""Tasks, by an explicit table: adding one is a file, a line here, its settings in `recipe/tasks.py`, a recipe and a test."""

from __future__ import annotations

from importlib import import_module

from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import Task

TASKS = {
    "text-classification": "sft_dist.tasks.text_classification:TextClassification",
    "token-classification": "sft_dist.tasks.token_classification:TokenClassification",
    "translation": "sft_dist.tasks.text_to_text:TextToText",
    "summarization": "sft_dist.tasks.text_to_text:TextToText",
    "instruction-tuning": "sft_dist.tasks.instruction_tuning:InstructionTuning",
    "image-classification": "sft_dist.tasks.image_classification:ImageClassification",
    "object-detection": "sft_dist.tasks.object_detection:ObjectDetection",
    "semantic-segmentation": "sft_dist.tasks.semantic_segmentation:SemanticSegmentation",
    "speech-recognition": "sft_dist.tasks.speech_recognition:SpeechRecognition",
    "audio-classification": "sft_dist.tasks.audio_classification:AudioClassification",
}


def task_of(recipe: Recipe) -> Task:
    module, name = TASKS[recipe.task.type].split(":")
    return getattr(import_module(module), name)(recipe)
