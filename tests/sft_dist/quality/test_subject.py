"""What the data check asks of prepared rows, whatever task they are of."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from datasets import Dataset

from sft_dist.data.rows import ROW, Rows
from sft_dist.quality.checks import check_media
from sft_dist.quality.source import Source
from sft_dist.quality.subject import Subject, count_classes
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks.base import Media
from sft_dist.recipe.tasks.image_classification import ImageClassificationTask
from sft_dist.tasks import task_of


def recipe_of(task: str, **options: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "rows",
            "task": {"type": task, **options},
            "model": {"path": "/nowhere"},
            "data": {"source": "/nowhere.csv"},
            "tuning": "full",
            "train": {"lr": 1e-3, "epochs": 1.0},
        }
    )


def subject_of(recipe: Recipe, **splits: dict[str, list[Any]]) -> Subject:
    rows = {
        split: Rows(Dataset.from_dict({**columns, ROW: list(range(len(next(iter(columns.values())))))}))
        for split, columns in splits.items()
    }
    return Subject(recipe, task_of(recipe), Source(), rows, None, None)


def test_values_and_texts_follow_one_another_split_after_split():
    recipe = recipe_of("text-classification")
    subject = subject_of(
        recipe, train={"text": ["a", "b"], "label": ["x", "y"]}, test={"text": ["c", None], "label": ["x", "x"]}
    )
    assert list(subject.texts("text")) == ["a", "b", "c", ""]
    assert subject.input_texts(np.array([1, 2])) == ["b", "c"]
    assert subject.reads_texts
    assert subject.row_index.row_ids([2]) == [("test", 0)]


@pytest.mark.parametrize(
    ("task", "options", "columns", "counts", "unit"),
    [
        ("text-classification", {}, {"text": ["a", "b"], "label": ["x", "x"]}, {"x": 2}, "rows"),
        (
            "text-classification",
            {"problem": "multi-label"},
            {"text": ["a", "b"], "label": [["x", "y"], ["y"]]},
            {"x": 1, "y": 2},
            "rows",
        ),
        (
            "token-classification",
            {},
            {"tokens": [["a", "b"], ["c"]], "tags": [["O", "X"], ["O"]]},
            {"O": 2, "X": 1},
            "words",
        ),
        ("semantic-segmentation", {}, {"pixels": [[4, 0], [1, 2]]}, {"0": 5, "1": 2}, "pixels"),
        (
            "object-detection",
            {},
            {"objects": [{"bbox": [[0.0, 0.0, 1.0, 1.0]], "category": ["x"], "iscrowd": [0]}]},
            {"x": 1},
            "boxes",
        ),
    ],
)
def test_classes_are_counted_by_what_has_them(task, options, columns, counts, unit):
    counted, first, counted_unit = count_classes(subject_of(recipe_of(task, **options), train=columns))
    assert (counted["train"], counted_unit) == (counts, unit)
    assert set(first["train"]) == set(counts)


def test_numbers_are_no_classes():
    subject = subject_of(recipe_of("text-classification", problem="regression"), train={"text": ["a"], "label": [0.5]})
    assert count_classes(subject) == ({}, {}, "")
    assert subject.label_roles == ["label"]


class ScanTask(ImageClassificationTask):
    """A task of another package, whose role no built-in task has."""

    columns: ClassVar = {"scan": "required", "label": "required"}
    media: ClassVar[Media] = {"scan": "image"}


def test_images_are_decoded_under_any_name_of_their_role():
    recipe = recipe_of("image-classification")
    recipe = recipe.model_copy(update={"task": ScanTask(type="image-classification")})
    subject = subject_of(recipe, train={"scan": [{"path": None, "bytes": b"no image"}], "label": ["x"]})
    (finding,) = check_media(subject, lambda text: None)
    assert (finding.kind, finding.rows) == ("unreadable-image", (("train", 0),))
    assert subject.media_role("image") == "scan"
