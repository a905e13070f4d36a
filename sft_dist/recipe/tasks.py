"""What a recipe can say about each task, and the facts about a task that need no torch: the columns it reads, the scores
it can be judged by, the losses it can be trained with.

A task is a class here, a line in each of the tables, and a file in `sft_dist/tasks/`.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sft_dist.recipe.section import Section, shorthand

Positive = Annotated[int, Field(ge=1, le=10**9)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Need = Literal["required", "if mapped", "if present"]
Scores = dict[str, Literal["max", "min"]]

# Roles a task reads from the data. `data.columns` maps roles to the names in the files; a role that is read "if mapped" has
# to be named there, since a column of that name may well mean something else.
TASK_COLUMNS: dict[str, dict[str, Need]] = {
    "text-classification": {"text": "required", "text_pair": "if mapped", "label": "required"},
    "token-classification": {"tokens": "required", "tags": "required"},
    "translation": {"source": "required", "target": "required"},
    "summarization": {"source": "required", "target": "required"},
    "instruction-tuning": {
        "messages": "if present",
        "conversations": "if present",
        "instruction": "if present",
        "input": "if present",
        "output": "if present",
        "system": "if present",
        "history": "if present",
        "prompt": "if present",
        "completion": "if present",
    },
    "image-classification": {"image": "required", "label": "required"},
    "object-detection": {"image": "required", "objects": "required"},
    "semantic-segmentation": {"image": "required", "mask": "required"},
    "speech-recognition": {"audio": "required", "text": "required"},
    "audio-classification": {"audio": "required", "label": "required"},
}

_ONE_CLASS_SCORES: Scores = {
    "accuracy": "max",
    "f1_macro": "max",
    "f1_weighted": "max",
    "precision_macro": "max",
    "precision_weighted": "max",
    "recall_macro": "max",
    "recall_weighted": "max",
    "roc_auc": "max",
    "mcc": "max",
    "loss": "min",
}
_MANY_CLASSES: Scores = {
    "f1_macro": "max",
    "f1_micro": "max",
    "f1_weighted": "max",
    "precision_macro": "max",
    "precision_micro": "max",
    "recall_macro": "max",
    "recall_micro": "max",
    "roc_auc": "max",
    "exact_match": "max",
    "loss": "min",
}

# Scores `sft-dist eval` computes, and which way is better, by kind of problem. The first is the default to choose by. Macro
# averages are over the classes that occur in the split or in the predictions.
METRICS: dict[str, Scores] = {
    "single-label": _ONE_CLASS_SCORES,
    "multi-label": _MANY_CLASSES,
    "regression": {
        "mse": "min",
        "rmse": "min",
        "mae": "min",
        "r2": "max",
        "pearson": "max",
        "spearman": "max",
        "loss": "min",
    },
    "token-classification": {"f1": "max", "precision": "max", "recall": "max", "accuracy": "max", "loss": "min"},
    "translation": {"bleu": "max", "chrf": "max", "loss": "min"},
    "summarization": {"rougeL": "max", "rouge1": "max", "rouge2": "max", "loss": "min"},
    "instruction-tuning": {"loss": "min", "perplexity": "min", "token_accuracy": "max", "exact_match": "max"},
    "image-single-label": {"accuracy": "max", "top5_accuracy": "max", **_ONE_CLASS_SCORES},
    "object-detection": {"map": "max", "map50": "max", "map75": "max", "loss": "min"},
    "semantic-segmentation": {
        "mean_iou": "max",
        "pixel_accuracy": "max",
        "mean_accuracy": "max",
        "dice": "max",
        "loss": "min",
    },
    "speech-recognition": {"wer": "min", "cer": "min", "loss": "min"},
    "audio-classification": {**_ONE_CLASS_SCORES, "uar": "max"},
}

# Losses each kind of problem allows; the first is the default.
LOSSES: dict[str, tuple[str, ...]] = {
    "single-label": ("cross-entropy", "focal"),
    "multi-label": ("binary-cross-entropy", "focal"),
    "regression": ("mse", "huber"),
    "token-classification": ("cross-entropy", "focal"),
    "translation": ("cross-entropy",),
    "summarization": ("cross-entropy",),
    "instruction-tuning": ("cross-entropy",),
    "image-single-label": ("cross-entropy", "focal"),
    "object-detection": ("detection",),
    "semantic-segmentation": ("cross-entropy", "focal", "dice", "iou"),
    "speech-recognition": ("model",),
    "audio-classification": ("cross-entropy", "focal"),
}


# Kinds where every example has one class, whose shares can be kept equal in all splits; and those without classes.
ONE_CLASS = ("single-label", "image-single-label", "audio-classification")
NO_CLASSES = ("regression", "translation", "summarization", "instruction-tuning", "speech-recognition")

# The key of `data.augment` that changes a task's examples; other tasks have none.
AUGMENTED: dict[str, Literal["text", "image", "audio"]] = {
    "text-classification": "text",
    "image-classification": "image",
    "object-detection": "image",
    "semantic-segmentation": "image",
    "speech-recognition": "audio",
    "audio-classification": "audio",
}


class _Task(Section):
    type: str

    @property
    def kind(self) -> str:
        """Kind of problem: the key into METRICS and LOSSES."""
        return self.type


class _Classes(_Task):
    problem: str
    threshold: Probability | None = Field(
        None, description="multi-label only: a class is predicted from this probability on (0.5 when left out)."
    )
    label_separator: Annotated[str, Field(min_length=1, max_length=8)] | None = Field(
        None,
        description="multi-label only: what separates class names in a text column, such as '|' (',' when left out).",
    )

    @property
    def kind(self) -> str:
        return self.problem

    @model_validator(mode="after")
    def _only_for_multi_label(self) -> "_Classes":
        if self.problem != "multi-label":
            for key in ("threshold", "label_separator"):
                if getattr(self, key) is not None:
                    raise ValueError(f"`{key}` has no effect with problem: {self.problem}; it belongs to multi-label")
        return self


class TextClassificationTask(_Classes):
    type: Literal["text-classification"] = Field(description="One class, several, or a number for a text or a pair.")
    problem: Literal["single-label", "multi-label", "regression"] = Field(
        "single-label",
        description="single-label: one class a text. multi-label: any number of classes (a list, or names joined by "
        "`label_separator`). regression: one number.",
    )


class TokenClassificationTask(_Task):
    type: Literal["token-classification"] = Field(description="A tag for every word, such as names of persons.")
    label_all_pieces: bool = Field(
        False, description="Train on every piece of a word; otherwise on its first, which is what is scored."
    )


class TextToTextTask(_Task):
    type: Literal["translation", "summarization"] = Field(description="A text from a text (encoder-decoder models).")
    prefix: str = Field("", description="Put before every source, as T5 wants: `translate English to German: `.")
    source_language: str | None = Field(None, description="Code of the source's language, for multilingual models.")
    target_language: str | None = Field(None, description="Code of the target's language, for multilingual models.")
    max_target_length: Positive = Field(128, description="Longest target in tokens; longer ones are cut.")
    num_beams: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Beams of the search that writes the text.")


class InstructionTuningTask(_Task):
    type: Literal["instruction-tuning"] = Field(description="Answers in conversations (causal language models).")
    train_on: Literal["answers", "all"] = Field("answers", description="Tokens that count in the loss.")
    packing: bool = Field(
        False, description="Fill sequences of data.max_length with several conversations, which do not see each other."
    )
    system: str | None = Field(None, description="System message for conversations that have none.")
    chat_template: str | None = Field(
        None, description="A file with a Jinja chat template. Left out: the tokenizer's own."
    )
    max_new_tokens: Positive = Field(256, description="Longest answer `predict` writes.")


class ImageClassificationTask(_Classes):
    type: Literal["image-classification"] = Field(description="One class or several for a picture.")
    problem: Literal["single-label", "multi-label"] = Field(
        "single-label", description="single-label: one class a picture. multi-label: any number of classes."
    )
    mixup: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="Mix pairs of training pictures and labels (arXiv 1710.09412) by a Beta(x, x) share; 0: not."
    )
    cutmix: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="Paste a part of one training picture into another (arXiv 1905.04899), Beta(x, x); 0: not."
    )

    @property
    def kind(self) -> str:
        return "image-single-label" if self.problem == "single-label" else self.problem


class ObjectDetectionTask(_Task):
    type: Literal["object-detection"] = Field(description="Boxes with classes in a picture.")
    threshold: Probability = Field(0.5, description="`predict` shows boxes from this score on.")


class SemanticSegmentationTask(_Task):
    type: Literal["semantic-segmentation"] = Field(description="A class for every pixel.")
    ignore_index: Annotated[int, Field(ge=0, le=255)] = Field(
        255, description="Value in the masks that means: no class, leave the pixel out."
    )


class SpeechRecognitionTask(_Task):
    type: Literal["speech-recognition"] = Field(description="The text of a recording (CTC and Whisper models).")
    language: str | None = Field(None, description="Language token, for multilingual Whisper models: `en`.")
    max_seconds: Seconds = Field(30.0, description="Drop longer recordings.")
    num_beams: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Beams of the search (Whisper).")


class AudioClassificationTask(_Task):
    type: Literal["audio-classification"] = Field(description="One class for a recording: a keyword, an emotion.")
    max_seconds: Seconds = Field(10.0, description="Longer recordings are cut to this.")


Task = Annotated[
    Annotated[
        TextClassificationTask
        | TokenClassificationTask
        | TextToTextTask
        | InstructionTuningTask
        | ImageClassificationTask
        | ObjectDetectionTask
        | SemanticSegmentationTask
        | SpeechRecognitionTask
        | AudioClassificationTask,
        Field(discriminator="type"),
    ],
    shorthand("type"),
]
