"""Labels of a source: what is read, what is refused with its row."""

from __future__ import annotations

import pytest

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.text_classification import TextClassification


def task(problem: str = "multi-label", labels: list[str] | None = None) -> TextClassification:
    return TextClassification(
        Recipe.model_validate(
            {
                "name": "labels",
                "task": {"type": "text-classification", "problem": problem},
                "model": {"path": "./model"},
                "data": {"source": "./d.csv", "max_length": 8, **({"labels": labels} if labels else {})},
                "tuning": "full",
                "train": {"lr": 1e-3, "epochs": 1, "global_batch": 8},
            }
        )
    )


ABC = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("raw", "labels", "classes"),
    [
        (["a", "b"], None, ["a", "b"]),
        (["a", "a"], None, ["a"]),
        ("a, b", None, ["a", "b"]),
        ("['a', 'b']", None, ["a", "b"]),
        ("['a' 'b']", None, ["a", "b"]),
        ('["a", "b"]', None, ["a", "b"]),
        ("[]", None, []),
        (3, None, ["3"]),
        ([2, 3], None, ["2", "3"]),
        ([1, 0, 1], ABC, ["a", "c"]),
        ([1.0, 0.0, 1.0], ABC, ["a", "c"]),
        ([True, False, True], ABC, ["a", "c"]),
        ([0, 0, 0], ABC, []),
        ("[1, 0, 1]", ABC, ["a", "c"]),
        ("[1. 0. 1.]", ABC, ["a", "c"]),
        ("1,0,1", ABC, ["a", "c"]),
        ([0, 1], ["0", "1", "2"], ["0", "1"]),
        ("0,1", None, ["0", "1"]),
    ],
)
def test_multi_label_values(raw, labels, classes):
    assert task(labels=labels).parse(raw, 7) == classes


@pytest.mark.parametrize(
    ("raw", "labels"),
    [
        ([1, 0, 1], None),
        ("1,0,1", None),
        ([0, 1], None),
        ([0, 1], ["0", "1"]),
        ([1, 0], ABC),
        ("[a, b]", None),
        ("['a', 'b'", None),
        ("['a' 'b', 'c']", None),
        ("{'a', 'b'}", None),
        ({"a": 1, "b": 0}, None),
        ([["a"], ["b"]], None),
    ],
)
def test_multi_label_values_that_are_uncertain_are_refused_by_row(raw, labels):
    with pytest.raises(UserError, match=r"row 7") as error:
        task(labels=labels).parse(raw, 7)
    assert error.value.problems[0].hint or error.value.problems[0].valid


@pytest.mark.parametrize("raw", [["pos"], {"name": "pos"}, [1, 0], "['pos']", b"pos"])
def test_lists_and_objects_are_no_class(raw):
    with pytest.raises(UserError, match="row 7: a class is needed, not"):
        task("single-label").parse(raw, 7)


@pytest.mark.parametrize(
    ("raw", "name"), [(1, "1"), (1.0, "1"), (1.5, "1.5"), (True, "true"), (" a ", "a"), ("1.0", "1.0")]
)
def test_texts_numbers_and_truth_values_are_classes(raw, name):
    assert task("single-label").parse(raw, 7) == name
