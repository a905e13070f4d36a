"""What a leaderboard says about certainty, from predictions that were kept beside recorded scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from sft_dist.data.rows import ROW, Examples, Rows
from sft_dist.evaluation import comparison
from sft_dist.evaluation.baseline import worse_than
from sft_dist.evaluation.comparison import Answers, seed_spread, selection_note, with_statistics
from sft_dist.evaluation.leaderboard import Scored, compose, render
from sft_dist.evaluation.predictions import SplitPredictions
from sft_dist.evaluation.reuse import evaluations_on_test, record_evaluation, reuse_note
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json, write_json
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from tests.tiny_text import recipe_of

NUM = 200
TRUE = np.arange(NUM) % 2
RECIPE = recipe_of({"type": "text-classification"}, labels=["neg", "pos"])


def logits(num_wrong, first=0):
    """Wrong answers begin at an example."""
    predicted = TRUE.copy()
    predicted[first : first + num_wrong] ^= 1
    return list(np.eye(2, dtype=np.float32)[predicted] * 4)


class Reader:
    """Answers by run and step, as if they had been read."""

    def __init__(self, answers, contents=None):
        self.answers, self.contents = answers, contents or {}

    def read(self, entry, recipe, split):
        predictions = self.answers.get((entry.folder.id, entry.step))
        if predictions is None:
            return None
        task = task_of(recipe)
        examples = Examples(Dataset.from_dict({"label": TRUE, ROW: np.arange(NUM)}), split)
        content = SplitPredictions(predictions, np.arange(NUM), None, self.contents.get(entry.folder.id, "rows"))
        rows = Rows(Dataset.from_dict({"text": [f"text {i}" for i in range(NUM)], ROW: np.arange(NUM)}))
        return Answers(content, task, task.build_loss(examples), examples, rows)


def scored(folder, step, num_wrong):
    accuracy = 1 - num_wrong / NUM
    return Scored(
        folder, step, f"{folder.id}-{step}", {"examples": NUM, "loss": 0.5, "f1_macro": accuracy, "accuracy": accuracy}
    )


def board_of(ranking, recipes, final=None):
    return compose(ranking, recipes, ["neg", "pos"], {}, final or {}, [])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("swept") / "run")
    folder.create(RECIPE)
    folder.evaluation.mkdir()
    ranking = [scored(folder, 8, 20), scored(folder, 12, 22), scored(folder, 4, 60), scored(folder, 2, 62)]
    answers = {("run", 8): logits(20), ("run", 12): logits(22, 4), ("run", 4): logits(60, 10)}
    recipes = {folder: RECIPE}
    final = {"test": {"examples": NUM, "accuracy": 0.9, "loss": 0.4}}
    board = board_of(ranking, recipes, final)
    return board, with_statistics(board, ranking, recipes, Reader(answers)), folder


def test_candidates_are_compared_with_the_winner(swept):
    before, board, _ = swept
    assert {key: board[key] for key in before if key not in ("rows", "winner")} == {
        key: before[key] for key in before if key not in ("rows", "winner")
    }
    winner, close, worse, unknown = board["rows"]
    assert winner["p_value"] is None
    assert not winner["not_distinguishable"]
    metric = board["metric"]
    low, high = winner["intervals"][metric]
    assert low < 0.9 < high
    assert close["not_distinguishable"]
    assert close["p_value"] > 0.05 > worse["p_value"] > 0
    assert not worse["not_distinguishable"]
    assert unknown == {**before["rows"][3], "intervals": {}, "p_value": None, "not_distinguishable": False}
    assert 0.02 < board["smallest_difference"][metric] < 0.2
    assert board["selection_note"] == selection_note(4)
    assert "best of 4" in board["selection_note"]
    assert selection_note(1) == ""
    assert set(board["winner"]["intervals"]["test"]) >= {"accuracy", "f1_macro", "loss"}


def test_a_mean_is_named_by_its_steps_and_all_that_were_tried_are_counted(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.evaluation.mkdir(parents=True)
    best, checkpoint = replace(scored(folder, 8, 20), members=(4, 8)), scored(folder, 4, 22)
    board = board_of([checkpoint, best], {folder: RECIPE})
    board = with_statistics(
        board, [checkpoint, best], {folder: RECIPE}, Reader({("run", 4): logits(22), ("run", 8): logits(20)}), 3
    )
    page = render(board)
    assert "not distinguishable from the winner at this size: run mean of steps 4, 8" in page
    assert "| run | mean of steps 4, 8 |" in page
    assert "best of 5" in page
    board = board_of([best, checkpoint], {folder: RECIPE})
    assert f"Winner: run run, mean of steps 4, 8 (`{folder.candidate(8, (4, 8))}`)" in render(board)
    record_evaluation(folder, 4, "weights")
    record_evaluation(folder, 8, "their mean", (4, 8))
    assert "run step 4" in (note := reuse_note(evaluations_on_test([folder])))
    assert "run mean of steps 4, 8" in note


def test_the_page_says_how_certain_it_is(swept):
    before, board, _ = swept
    page = render(board)
    low, high = board["rows"][0]["intervals"][board["metric"]]
    assert f"0.900 [{low:.3f}, {high:.3f}]" in page
    assert "not distinguishable from the winner at this size: run step 12; differences in" in page
    assert "best of 4" in page
    assert "[" not in render(before).replace("`[", ""), "an older leaderboard has no intervals"


def test_the_winner_s_errors_are_listed_with_their_texts(swept):
    _, board, folder = swept
    errors = read_json(folder.evaluation / "step-00000008.validation.errors.json")
    assert errors["checkpoint"] == "run-8"
    assert len(errors["worst"]) == len(errors["most_uncertain"]) == 20
    assert {error["row"] for error in errors["worst"]} == set(range(20))
    assert errors["worst"][1] == {"row": 1, "label": "pos", "predicted": "neg", "probability": pytest.approx(0.982, abs=1e-3), "text": "text 1"}  # fmt: skip
    report = board["winner"]["calibration"]
    assert set(report) == {"validation", "test", "test_scaled", "temperature"}
    assert sum(entry["examples"] for entry in report["test_scaled"]["bins"]) == NUM
    assert report["test_scaled"]["nll"] < report["test"]["nll"]
    assert "Calibration: ECE 0.082" in render(board)


def test_missing_data_leaves_the_scores_as_they_are(swept, tmp_path, caplog):
    before, _, folder = swept

    class Gone:
        def read(self, *arguments):
            raise UserError("the data is gone")

    board = with_statistics({**before, "rows": before["rows"][:1]}, [scored(folder, 8, 20)], {folder: RECIPE}, Gone())
    assert board["rows"][0]["intervals"] == {}
    assert "no intervals and no comparisons: the data is gone" in caplog.text


def test_other_rows_are_not_compared(tmp_path):
    folders = [RunFolder(tmp_path / name) for name in ("a", "b")]
    ranking = [scored(folders[0], 1, 20), scored(folders[1], 1, 60)]
    recipes = dict.fromkeys(folders, RECIPE)
    reader = Reader({("a", 1): logits(20), ("b", 1): logits(60)}, {"b": "other rows"})
    folders[0].create(RECIPE)
    folders[0].evaluation.mkdir()
    board = with_statistics(board_of(ranking, recipes), ranking, recipes, reader)
    assert board["rows"][1]["p_value"] is None
    assert board["rows"][1]["intervals"]


def test_what_cannot_be_compared_leaves_the_scores_as_they_are(tmp_path):
    """Other classes on the same rows, and NaN."""
    folders = [RunFolder(tmp_path / name) for name in "abc"]
    for folder in folders:
        folder.create(RECIPE)
        folder.evaluation.mkdir()
    ranking = [scored(folder, 1, 20) for folder in folders]
    three = [np.append(row, np.float32(-9)) for row in logits(20)]
    nan = [*logits(20)[1:], np.full(2, np.nan, dtype=np.float32)]
    answers = {("a", 1): logits(20), ("b", 1): three, ("c", 1): nan}
    recipes = dict.fromkeys(folders, recipe_of({"type": "text-classification"}, labels=["neg", "pos"]))
    recipes[folders[1]] = recipe_of({"type": "text-classification"}, labels=["neg", "pos", "none"])
    board = with_statistics({**board_of(ranking, recipes), "metric": "f1_macro"}, ranking, recipes, Reader(answers))
    assert [row["p_value"] for row in board["rows"]] == [None] * 3
    assert [bool(row["intervals"]) for row in board["rows"]] == [True, True, False]
    nan_first = with_statistics(board_of(ranking[::-1], recipes), ranking[::-1], recipes, Reader(answers))
    assert nan_first["winner"]["intervals"] == {"validation": {}}


def test_the_spread_between_seeds_stands_beside_the_error_within_the_set(tmp_path):
    folders = [RunFolder(tmp_path / name) for name in "abc"]
    ranking = [scored(folder, 1, wrong) for folder, wrong in zip(folders, (20, 30, 40), strict=True)]
    board = {
        "metric": "accuracy",
        "differences": {"a": {"train.lr": 1, "train.seed": 1}, "b": {"train.lr": 1, "train.seed": 2}, "c": {"train.lr": 2, "train.seed": 1}},
    }  # fmt: skip
    (spread,) = seed_spread(board, ranking, [None] * 3)
    assert spread["settings"] == {"train.lr": 1}
    assert spread["runs"] == 2
    assert (spread["mean"], spread["between_seed_sd"]) == pytest.approx((0.875, 0.05 / 2**0.5))
    assert spread["within_set_error"] is None


def test_a_second_checkpoint_on_test_is_said(swept):
    board, _, folder = swept
    before = {**board, "rows": board["rows"][:1]}
    record_evaluation(folder, 8, "weights")
    record_evaluation(folder, 8, "weights")
    ranking, recipes = [scored(folder, 8, 20)], {folder: RECIPE}
    assert with_statistics(before, ranking, recipes, Reader({}))["test_note"] == ""
    record_evaluation(folder, 12, "other weights")
    board = with_statistics(before, ranking, recipes, Reader({}))
    assert [evaluation["step"] for evaluation in board["test_evaluations"]] == [8, 12]
    assert "test was scored for 2 checkpoints (run step 8 (" in board["test_note"]
    assert board["test_note"] in render(board)
    with folder.test_evaluations_file.open("a") as file:
        file.write('{"step": 1')
    assert len(evaluations_on_test([folder])) == 2


# ── the gate ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def gate(tmp_path):
    """Compares runs by their numbers of wrong answers."""

    def compare(wrong, reference_wrong, contents=None):
        folders = [RunFolder(tmp_path / name) for name in ("new", "old")]
        entries = [scored(folders[0], 1, wrong), scored(folders[1], 1, reference_wrong)]
        for entry in entries:
            entry.folder.create(RECIPE)
            entry.folder.evaluation.mkdir(exist_ok=True)
            record = {"step": 1, "checkpoint": entry.fingerprint, "scores": entry.scores}
            write_json(entry.folder.evaluation / "step-00000001.validation.json", record)
        reader = Reader({("new", 1): logits(wrong), ("old", 1): logits(reference_wrong)}, contents)
        return worse_than(entries[0], RECIPE, folders[1], reader)

    return compare


def test_a_winner_that_is_worse_beyond_chance_does_not_pass(gate):
    (line,) = gate(60, 20)
    assert line.startswith("accuracy on validation is 0.7000, worse than 0.9000 of old step 1 beyond chance (p = 0.0")


@pytest.mark.parametrize(("wrong", "reference_wrong"), [(22, 20), (20, 20), (20, 60)])
def test_a_winner_within_chance_passes(gate, wrong, reference_wrong):
    assert gate(wrong, reference_wrong) == []


def test_what_cannot_be_compared_is_refused(gate, tmp_path):
    with pytest.raises(UserError, match="old step 1 was scored on other validation rows"):
        gate(20, 20, {"old": "other rows"})
    empty = RunFolder(tmp_path / "empty")
    empty.create(RECIPE)
    with pytest.raises(UserError, match="it has no scores; evaluate it first"):
        worse_than(scored(RunFolder(tmp_path / "new"), 1, 2), RECIPE, empty, Reader({}))


def test_predictions_of_other_weights_are_not_read(tmp_path):
    def prepared(recipe):
        raise AssertionError("the data of predictions that are not read")

    entry = Scored(RunFolder(tmp_path), 1, "weights", {})
    assert comparison.AnswersReader(prepared).read(entry, RECIPE, "validation") is None
