import pytest

from launch.report.classes import MAX_CHARS, MAX_ERRORS, class_report
from sft_dist.recipe.files import write_json
from sft_dist.run.folder import RunFolder
from tests.launch.report.run_files import add_class_report, leaderboard

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def winner(folder):
    board = leaderboard({("run", 40): 0.9}, labels=("10", "2"))
    add_class_report(board, folder, HOSTILE * 20)
    return board["winner"]


def test_calibration_has_scores_bins_and_the_temperature(winner, folder):
    calibration = class_report(winner, folder)["calibration"]
    assert list(calibration["scores"]) == ["validation", "test", "test_scaled"]
    assert calibration["scores"]["test_scaled"]["ece"] == 0.04
    assert "bins" not in calibration["scores"]["test"]
    assert [entry["examples"] for entry in calibration["bins"]["test"]] == [20, 20, 20]
    assert calibration["temperature"] == 1.25


def test_leaderboards_of_earlier_versions_have_no_bins(winner, folder):
    del winner["calibration"]["test"]["bins"]
    calibration = class_report(winner, folder)["calibration"]
    assert calibration["bins"]["test"] == []
    assert calibration["scores"]["test"]["ece"] == 0.0667


def test_classes_keep_their_order(winner, folder):
    (first, second) = class_report(winner, folder)["per_class"]["test"]
    assert first == {"label": "10", "precision": 0.75, "recall": 0.5, "f1": 0.6, "examples": 30}
    assert second == {"label": "2", "recall": 0.6, "f1": 0.6, "examples": 30}  # its precision is undefined


def test_errors_are_clipped_texts(winner, folder):
    errors = class_report(winner, folder)["errors"]
    assert errors["split"] == "test"
    assert [error["row"] for error in errors["worst"]] == list(range(12))
    assert errors["worst"][0]["text"] == (HOSTILE * 20)[:MAX_CHARS]
    assert errors["most_uncertain"][0]["predicted"] == "10"


def test_without_a_test_split_the_errors_are_those_on_validation(winner, folder):
    folder.errors_file(40, "test").rename(folder.errors_file(40, "validation"))
    assert class_report(winner, folder)["errors"]["split"] == "validation"


def test_images_and_recordings_have_no_text(winner, folder):
    write_json(folder.errors_file(40, "test"), {"worst": [{"row": 3, "label": "10", "predicted": "2", "text": None}]})
    (error,) = class_report(winner, folder)["errors"]["worst"]
    assert error == {"row": 3, "label": "10", "predicted": "2", "probability": None, "text": None}


@pytest.mark.parametrize(
    "content",
    [
        3,
        {"worst": 3, "most_uncertain": [3]},
        {"worst": [{"row": HOSTILE, "text": {HOSTILE: 1}, "probability": HOSTILE}] * 99},
    ],
)
def test_damaged_files_of_errors_do_no_harm(winner, folder, content):
    write_json(folder.errors_file(40, "test"), content)
    errors = class_report(winner, folder)["errors"]
    assert len(errors.get("worst", [])) <= MAX_ERRORS
    assert all(error["row"] is error["probability"] is None for error in errors.get("worst", []))


@pytest.mark.parametrize("value", [None, 3, [], {"test": 3}, {"test": {"bins": 3}}])
def test_tasks_without_classes_and_damaged_leaderboards_have_no_scores(folder, value):
    report = class_report({"step": value, "calibration": value, "per_class": value}, folder)
    assert not any(report["calibration"].get("bins", {}).values())
    assert not any(
        score for classes in report["per_class"].values() for entry in classes for score in entry.keys() - {"label"}
    )
    assert report["errors"] == {}
