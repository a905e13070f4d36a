"""The report of rows that could not be prepared still counts, measures and quotes them."""

from __future__ import annotations

from sft_dist.quality.build_report import build_report
from sft_dist.quality.findings import make_finding
from sft_dist.tasks.loading import load_tokenizer
from tests.sft_dist.quality.test_subject import recipe_of, subject_of


def test_lengths_are_characters_until_texts_can_be_encoded():
    recipe = recipe_of("text-classification")
    subject = subject_of(
        recipe, train={"text": ["abc", "de"], "label": ["x", "y"]}, test={"text": ["f"], "label": ["x"]}
    )
    findings = [make_finding("duplicate", "1 row", [("train", 1)])]
    report = build_report(subject, findings, None, False, lambda text: None)
    assert report.rows == {"train": 2, "test": 1}
    assert report.classes == {"train": {"x": 1, "y": 1}, "test": {"x": 1}}
    assert report.length_unit == "characters"
    assert report.lengths["train"].numbers.tolist() == [3, 2]
    assert report.excerpts == {("train", 1): "de | [y]"}
    assert report.estimate is None


def test_recordings_are_measured_in_seconds():
    recipe = recipe_of("audio-classification")
    audio = [{"path": "a.wav", "bytes": None}]
    subject = subject_of(recipe, train={"audio": audio, "seconds": [2.5], "label": ["x"]})
    findings = [make_finding("duplicate", "1 row", [("train", 0)])]
    report = build_report(subject, findings, None, False, lambda text: None)
    assert (report.length_unit, report.lengths["train"].numbers.tolist()) == ("seconds", [2.5])
    assert report.excerpts == {("train", 0): "a.wav | [x]"}


def test_inputs_are_measured_in_tokens_where_a_label_keeps_rows_from_being_encoded(tiny_model):
    recipe = recipe_of("token-classification")
    rows = {"tokens": [["unbelievable", "film"]], "tags": [["O", "B-X"]]}
    subject = subject_of(recipe, train=rows)
    subject.processor = load_tokenizer(str(tiny_model))
    report = build_report(subject, [], None, False, lambda text: None)
    assert report.length_unit == "tokens"
    (count,) = report.lengths["train"].numbers.tolist()
    assert count == len(subject.processor("unbelievable film").input_ids)
