"""Classes of data.labels that training rows lack, and classes that are spelled in several ways."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_info

from sft_dist.quality.labels import check_classes, check_spellings, review_labels


def test_a_class_of_data_labels_without_training_rows_is_named():
    findings = check_classes({"train": {"a": 20, "b": 20}}, {}, "rows", ["a", "b", "c"], ["a", "b", "c"])
    assert [(finding.kind, finding.details["label"]) for finding in findings] == [("label-without-rows", ["c"])]


def test_classes_that_differ_in_spelling_are_named():
    names = ["pos", "Pos", "very good", "very  good", "caf\u00e9", "cafe\u0301", "1", "01", "1.1", "1.10", "neg"]
    (finding,) = check_spellings(names)
    assert finding.kind == "label-spelling"
    assert sorted(map(sorted, finding.details["labels"])) == [
        ["01", "1"], ["Pos", "pos"], ["cafe\u0301", "caf\u00e9"], ["very  good", "very good"]
    ]  # fmt: skip
    assert check_spellings(["1.1", "1.10", "1e5000000", "inf", "NaN"]) == []


def test_the_simple_classifier_keeps_to_one_thread_of_blas(monkeypatch):
    from sklearn.linear_model import LogisticRegression

    threads: list[int] = []
    fit = LogisticRegression.fit

    def observed_fit(model, *arguments):
        threads.extend(library["num_threads"] for library in threadpool_info())
        return fit(model, *arguments)

    monkeypatch.setattr(LogisticRegression, "fit", observed_fit)
    review_labels(np.arange(40.0)[:, None], ["a"] * 20 + ["b"] * 20)
    assert threads
    assert set(threads) == {1}


def test_a_row_of_several_rare_classes_is_named_once():
    places = {"train": {"a": [("train", 1), ("train", 2)], "b": [("train", 2), ("train", 3)]}}
    (finding,) = check_classes({"train": {"a": 2, "b": 2}}, places, "words")
    assert finding.rows == (("train", 1), ("train", 2), ("train", 3))


def test_a_class_that_the_random_division_has_kept_from_training_is_not_blamed_on_the_data():
    counts = {"train": {"a": 20, "b": 20}, "test": {"a": 5, "b": 5, "c": 1}}
    (own,) = [finding for finding in check_classes(counts, {}) if finding.kind == "label-not-in-training"]
    (held_out,) = [f for f in check_classes(counts, {}, divided={"test"}) if f.kind == "label-not-in-training"]
    assert "data.where" in own.hint
    assert "data.split.seed" in held_out.hint
    assert [f.kind for f in check_classes(counts, {}, "rows", ["a", "b", "c"], ["a", "b", "c"])] == [
        "label-without-rows"
    ]
