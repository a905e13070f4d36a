"""The looks themselves, on plain lists."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sft_dist.quality import duplicates, labels, lengths
from sft_dist.quality.duplicates import check_leaks, check_repeats, equal_groups, sample_by_split
from sft_dist.quality.estimate import earlier_rate, estimate, padding_share
from sft_dist.quality.findings import RowIndex
from sft_dist.quality.media import ImageFacts, check_boxes
from sft_dist.quality.page import class_plot, to_html
from sft_dist.quality.report import Lengths, Report, to_json, to_text
from sft_dist.recipe.findings import KINDS
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder

ROOT = Path(__file__).resolve().parents[3]


def recipe(**train: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "demo",
            "task": "text-classification",
            "model": {"path": "/nowhere"},
            "data": {"source": "/nowhere.csv"},
            "tuning": "full",
            "train": {"lr": 1e-3, "global_batch": 4, "epochs": 2.0, **train},
        }
    )


ROW_INDEX = RowIndex.from_ids({"train": np.array([3, 5, 8, 9]), "test": np.array([0, 2])})


def test_every_kind_is_in_the_manual_with_its_severity():
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (error|warning) \|", (ROOT / "docs/check.md").read_text(), re.MULTILINE)
    assert dict(rows) == {kind: one.severity for kind, one in KINDS.items()}
    assert len(rows) == len(KINDS)


def test_places_name_rows_of_their_source():
    assert ROW_INDEX.row_ids([0, 3, 4]) == [("train", 3), ("train", 9), ("test", 0)]
    assert ROW_INDEX.indices_of("test").tolist() == [4, 5]


def test_repeats_conflicts_and_leaks_are_told_apart():
    inputs = np.array([1, 1, 2, 2, 1, 7], dtype=np.uint64)
    assert [group.tolist() for group in equal_groups(inputs)] == [[0, 1, 4], [2, 3]]
    targets = np.array([0, 0, 0, 1, 0, 0], dtype=np.uint64)
    by_kind = {one.kind: one for one in check_repeats(ROW_INDEX, inputs, targets, one_each=True)}
    assert by_kind["duplicate"].rows == (("train", 5),)
    assert by_kind["duplicate"].details["repeats"] == [["train", 3]]
    assert by_kind["conflicting-labels"].rows == (("train", 8), ("train", 9))
    (alone,) = check_repeats(ROW_INDEX, inputs, targets, one_each=False)
    assert (alone.kind, alone.rows) == ("duplicate", (("train", 5),))
    (leak,) = check_leaks(ROW_INDEX, inputs)
    assert set(leak.rows) == {("train", 3), ("train", 5), ("test", 0)}


def test_a_sample_takes_small_splits_whole():
    row_index = RowIndex.from_ids({"train": np.arange(1000), "test": np.arange(10), "validation": np.arange(500)})
    chosen = sample_by_split(row_index, 210)
    assert len(chosen) == len(set(chosen.tolist())) == 210
    assert [len(np.intersect1d(chosen, row_index.indices_of(split))) for split in row_index.splits] == [100, 10, 100]


def test_texts_are_gone_through_once_and_only_those_that_are_compared_are_read(monkeypatch: pytest.MonkeyPatch):
    facts = lengths.text_facts(text for text in ("ab", " ", "a\ufffd", "ab"))
    assert facts.lengths.tolist() == [2, 1, 2, 2]
    assert (facts.empty, facts.strange, facts.first, facts.num_equal) == ([1], [2], "ab", 2)
    asked: list[np.ndarray] = []

    def texts_at(chosen: np.ndarray) -> list[str]:
        asked.append(chosen)
        return [f"{number} is a text of its own" * int(number) for number in chosen]

    monkeypatch.setattr(duplicates, "MAX_NEAR_TEXTS", 4)
    duplicates.check_near_copies(ROW_INDEX, texts_at)
    assert [len(chosen) for chosen in asked] == [4]


def test_balanced_weights_are_those_of_the_loss():
    weights = labels.balanced_class_weights({"a": 90, "b": 10})
    assert weights == pytest.approx({"a": 100 / 180, "b": 5.0})
    assert sum(weights[name] * count for name, count in {"a": 90, "b": 10}.items()) == pytest.approx(100)


@pytest.mark.parametrize(
    ("tags", "broken"),
    [
        (["B-A", "I-A", "O"], False),
        (["O", "I-A"], True),
        (["B-A", "I-B"], True),
        (["B-A", "O", "I-A"], True),
        (["B-A", "B-A", "I-A"], False),
    ],
)
def test_broken_tags(tags: list[str], broken: bool):
    row_index = RowIndex.from_ids({"train": np.array([4, 7])})
    assert bool(labels.check_tags(row_index, [["B-A"], tags])) == broken


def test_a_scheme_without_b_is_left_alone():
    assert labels.check_tags(RowIndex.from_ids({"train": np.array([0])}), [["O", "I-A", "I-A"]]) == []


def test_calibration_finds_the_temperature_that_was_put_in():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 3)) * 2
    true = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    numbers = np.array([rng.choice(3, p=row) for row in true])
    shy = np.exp(scores / 4) / np.exp(scores / 4).sum(1, keepdims=True)
    assert np.abs(labels.calibrated(shy, numbers) - true).mean() < 0.01


def test_labels_are_reviewed_only_by_a_classifier_that_knows_them():
    rng = np.random.default_rng(0)
    names = np.array(["a", "b"] * 150)
    clear = np.where(names == "a", -2.0, 2.0)[:, None] + rng.normal(size=(300, 4)) * 0.5
    given = names.copy()
    given[[10, 77]] = ["b", "a"]
    review = labels.review_labels(clear, given.tolist())
    assert review is not None
    assert {one.index for one in review.suspicions} == {10, 77}
    assert {(one.label, one.likely) for one in review.suspicions} == {("b", "a"), ("a", "b")}
    blind = labels.review_labels(rng.normal(size=(300, 4)), given.tolist())
    assert blind is not None
    assert blind.suspicions == ()
    assert labels.review_labels(clear[:10], given[:10].tolist()) is None


def test_nothing_to_learn_is_a_weight_of_zero_in_every_part():
    weights = np.array([[1, 0], [0, 0], [0, 2], [0, 0], [1, 1], [3, 3]])
    (finding,) = lengths.check_masked_labels(ROW_INDEX, weights)
    assert finding.rows == (("train", 5), ("train", 9))


def test_steps_are_those_of_the_plan_and_time_is_the_rows_over_the_rate():
    steps = estimate(recipe(), np.full(10, 7), 10, (5.0, "a run"))
    assert (steps.steps_per_epoch, steps.steps, steps.tokens_per_epoch) == (3, 6, 70)
    assert steps.seconds == pytest.approx(2 * 10 / 5.0)
    assert estimate(recipe(), None, 10).seconds is None


def test_padding_is_what_the_longest_of_a_micro_batch_adds():
    assert padding_share(recipe(micro_batch=4), np.array([10, 5, 5, 0])) == pytest.approx(0.5)
    assert padding_share(recipe(micro_batch=1), np.array([10, 5, 5, 3])) == 0


def test_the_rate_of_an_earlier_run_leaves_out_each_first_line(tmp_path: Path):
    run = RunFolder(tmp_path / "demo" / "0123456789")
    run.create(recipe())
    assert earlier_rate(recipe(), tmp_path) is None
    lines = [(1, 2.0), (1, 10.0), (1, 12.0), (2, 1.0), (2, 14.0)]
    run.metrics_file.write_text(
        "".join(f'{{"kind": "train", "attempt": {attempt}, "examples_per_s": {rate}}}\n' for attempt, rate in lines)
    )
    rate = earlier_rate(recipe(), tmp_path)
    assert rate is not None
    assert rate[0] == 12.0
    other = recipe().model_copy(update={"data": recipe().data.model_copy(update={"max_length": 9})})
    assert earlier_rate(other, tmp_path) is None


def report() -> Report:
    numbers = np.array([3, 9, 12, 16])
    return Report(
        name="demo",
        task="text-classification",
        rows={"train": 4},
        findings=(
            *lengths.check_texts(ROW_INDEX, "text", lengths.text_facts(["a", "<b>\ufffd", "c", "", "e", "f"]), False),
            *check_leaks(ROW_INDEX, np.array([1, 2, 3, 4, 1, 6], dtype=np.uint64)),
        ),
        classes={"train": {"<i>x</i>": 3, "y": 1}},
        lengths={"train": Lengths(numbers, 1, lengths.statistics(numbers))},
        longest=16,
        estimate=estimate(recipe(), numbers, 4),
        excerpts={("train", 3): "<script>alert(1)</script>"},
    )


def test_the_text_names_errors_first_with_their_rows():
    text = to_text(report())
    assert text.index("leak:") < text.index("empty-text:")
    assert "train 3; test 0" in text
    assert text.endswith("1 error, 2 warnings")
    assert max(map(len, text.splitlines())) <= 100


def test_an_allowed_error_does_not_block():
    from dataclasses import replace

    allowed = replace(report(), allowed=("leak",))
    assert (len(report().errors), len(allowed.errors)) == (1, 0)
    answer = to_json(allowed)
    assert answer["ok"]
    assert [one["allowed"] for one in answer["findings"]] == [True, False, False]
    assert "allowed" in to_text(allowed)


@pytest.mark.slow
def test_the_page_holds_everything_and_asks_nobody():
    page = to_html(report())
    assert page.count("<svg") == 2
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "&lt;i&gt;x&lt;/i&gt;" in page
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)""", page) == []
    assert "cut at 16" in page
    assert "prefers-color-scheme: dark" in page
    assert to_html(report()) == page


def test_boxes_that_look_like_corners_are_called_so():
    images = [ImageFacts(40, 30, False, 0, np.zeros(1))] * 2
    index = RowIndex.from_ids({"train": np.array([0, 1])})
    corners = [{"bbox": [[10, 5, 35, 28]]}, {"bbox": [[2, 3, 9, 9]]}]
    assert "look like corners" in check_boxes(index, corners, images, None)[0].message
    outside = [{"bbox": [[10, 5, 5, 29]]}, {"bbox": [[2, 3, 9, 9]]}]
    assert "look like corners" not in check_boxes(index, outside, images, None)[0].message


def test_the_advice_about_truncation_knows_the_models_limit():
    truncated = np.array([True, True, False, False, False, False])
    assert "raise data.max_length" in lengths.check_truncation(ROW_INDEX, truncated, 512, 512)[0].hint
    (finding,) = lengths.check_truncation(ROW_INDEX, truncated, 512, 1024)
    assert "512 tokens are the model's limit" in finding.hint
    assert "raise data.max_length" not in finding.hint


@pytest.mark.parametrize("name", ["$x^2", "$\\frac{1}$", "a$b$c$", "\\alpha", "%s", "<b>&", "\x01", "😀"])
def test_a_class_of_any_name_is_drawn_as_it_is_written(name: str) -> None:
    plot = class_plot({"train": {name: 3, "other": 4}}, "rows")
    assert name not in ("$x^2", "a$b$c$", "%s") or name in plot


@pytest.mark.parametrize("texts", [["a"], ["!"] * 9, ["😀"] * 9, [""] * 9, ["ab", "cd"], ["a b", "c d"]])
def test_texts_without_a_term_in_common_have_no_features(texts: list[str]) -> None:
    features = labels.text_features(texts)
    assert features is None or features.shape[0] == len(texts)
    assert (features is None) == (texts not in (["!"] * 9, ["😀"] * 9))
