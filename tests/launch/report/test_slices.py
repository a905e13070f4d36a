import pytest

from launch.report.advice import summarise
from launch.report.scores import read_leaderboards
from launch.report.slices import MAX_CHARS, MAX_SLICES, slices_in
from sft_dist.recipe.files import write_json
from tests.launch.report.run_files import add_class_report, leaderboard, write_run


@pytest.fixture
def table(tmp_path):
    run = write_run(tmp_path)
    board = leaderboard({(run.id, 40): 0.9})
    add_class_report(board, run)
    write_json(run.path / "leaderboard.json", board)
    return read_leaderboards([run.path])[0]


def test_the_worst_slices_come_first_and_those_too_small_last(table):
    assert [entry["slice"] for entry in table["final"]["slices"]["test"]] == ["de", "up to 9", "fr"]


def test_the_summary_names_the_worse_slices(table):
    runs = [{"name": "r", "state": "finished", "point": {}, "total_steps": 40, "step": 40}]
    table |= {"selection_note": "the winner's score is the best of 4"}
    data = {
        "runs": runs,
        "settings": {"tuning.method": "lora", "model.path": "m"},
        "varying": [],
        "data": [],
        "leaderboards": [table],
        "cost": {"goodput": None},
    }
    assert "On test it is worse than on the rest where language de." in summarise(data)["significance"]
    assert "The winner's score is the best of 4." in summarise(data)["significance"]
    assert summarise(data)["trained"].startswith("LoRA tuning of m for")


@pytest.mark.parametrize("slices", [None, [], {"test": 3}, {"test": [None, 1]}])
def test_other_types_count_as_absent(slices):
    assert slices_in({"slices": slices}) == {}


def test_texts_are_clipped_and_what_is_no_number_is_absent():
    entry = {"by": "x" * 500, "slice": None, "score": "0.9", "interval": [0, "1"], "p_value": True, "worse": 1}
    (first, *others) = slices_in({"slices": {"test": [entry] * 1000}})["test"]
    assert first == {"by": "x" * MAX_CHARS, "slice": "None", "examples": None, "score": None, "interval": None, "p_value": None, "worse": False}  # fmt: skip
    assert len(others) == MAX_SLICES - 1
