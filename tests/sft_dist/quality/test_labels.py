"""Classes of data.labels that training rows lack."""

from __future__ import annotations

from sft_dist.quality.labels import check_classes


def test_a_class_of_data_labels_without_training_rows_is_named():
    findings = check_classes({"train": {"a": 20, "b": 20}}, {}, "rows", ["a", "b", "c"], ["a", "b", "c"])
    assert [(finding.kind, finding.details["label"]) for finding in findings] == [("label-without-rows", ["c"])]
