from functools import reduce

import pytest

from launch.report.scores import read_leaderboards
from sft_dist.recipe.files import write_json
from tests.launch.report.run_files import add_class_report, leaderboard, write_run


def test_the_leaderboard_of_all_runs_is_filtered_to_those_of_the_report(tmp_path):
    one, two = (write_run(tmp_path, train={"seed": seed}) for seed in (1, 2))
    board = leaderboard({(one.id, 20): 0.6, (two.id, 40): 0.8, ("ffffffffff", 40): 0.9, (one.id, 40): 0.7})
    write_json(tmp_path / "demo/leaderboard.json", board)
    (table,) = read_leaderboards([one.path, two.path])
    assert [(row["run"], row["step"], row["scores"]["accuracy"]) for row in table["rows"]] == [
        (1, 40, 0.8), (0, 40, 0.7), (0, 20, 0.6)
    ]  # fmt: skip
    assert table["final"] is None  # the winner is not in this report


def test_leaderboards_of_single_runs_become_one_table(tmp_path):
    one, two = (write_run(tmp_path, train={"seed": seed}) for seed in (1, 2))
    write_json(one.path / "leaderboard.json", leaderboard({(one.id, 20): 0.6, (one.id, 40): 0.9}))
    write_json(two.path / "leaderboard.json", leaderboard({(two.id, 40): 0.8}))
    (table,) = read_leaderboards([one.path, two.path])
    assert [row["scores"]["accuracy"] for row in table["rows"]] == [0.9, 0.8, 0.6]
    assert table["final"]["run"] == 0


def test_a_mean_and_its_newest_checkpoint_are_two_rows(tmp_path):
    run = write_run(tmp_path)
    board = leaderboard({(run.id, 20): 0.6, (run.id, 40): 0.8})
    mean = {**board["rows"][0], "members": [20, 40]}
    board = {**board, "rows": [mean, *board["rows"]], "winner": {**board["winner"], "members": [20, 40]}}
    add_class_report(board, run)
    run.errors_file(40, "test").rename(run.errors_file(40, "test", [20, 40]))
    write_json(run.path / "leaderboard.json", board)
    (table,) = read_leaderboards([run.path])
    assert [row.get("mean") for row in table["rows"]] == ["mean of steps 20, 40", None, None]
    assert (table["final"]["mean"], len(table["final"]["errors"]["worst"])) == ("mean of steps 20, 40", 12)


def test_intervals_and_tests_are_passed_on(tmp_path):
    run = write_run(tmp_path)
    board = leaderboard(
        {(run.id, 20): 0.6, (run.id, 40): 0.9}, smallest_difference={"accuracy": 0.1}, selection_note="the best of 2"
    )
    board["rows"][1] |= {"intervals": {"accuracy": [0.5, 0.7]}, "not_distinguishable": False, "p_value": 0.004}
    write_json(run.path / "leaderboard.json", board)
    (table,) = read_leaderboards([run.path])
    assert table["rows"][1]["intervals"] == {"accuracy": [0.5, 0.7]}
    assert table["rows"][1]["p_value"] == 0.004
    assert "p_value" not in table["rows"][0]
    assert (table["smallest_difference"], table["selection_note"]) == ({"accuracy": 0.1}, "the best of 2")


def test_tests_against_another_winner_are_dropped(tmp_path):
    first, second = (write_run(tmp_path, train={"seed": seed}) for seed in (1, 2))
    for run, best in ((first, 0.75), (second, 0.9)):
        board = leaderboard({(run.id, 20): best - 0.1, (run.id, 40): best}, selection_note=run.id)
        board["rows"][0] |= {"p_value": None, "not_distinguishable": False, "intervals": {}}
        board["rows"][1] |= {"p_value": 0.3, "not_distinguishable": True, "intervals": {}}
        write_json(run.path / "leaderboard.json", board)
    (table,) = read_leaderboards([first.path, second.path])
    tests = [(row["run"], row["step"], row.get("p_value"), row.get("not_distinguishable")) for row in table["rows"]]
    assert tests == [(1, 40, None, False), (1, 20, 0.3, True), (0, 40, None, None), (0, 20, None, None)]
    assert (table["final"]["run"], table["selection_note"]) == (1, second.id)


def test_the_comparison_with_the_base_is_passed_on(tmp_path):
    run = write_run(tmp_path)
    tested = {"score": "acc of arithmetic", "winner": 0.5, "base": 0.75, "interval": [0.3, 0.7], "p_worse": 0.01,
              "p_better": 1.0, "smallest_difference": 0.2, "result": "worse"}  # fmt: skip
    untested = {
        "score": "<b>bleu</b>",
        "winner": 0.5,
        "base": "0.5",
        "p_worse": None,
        "interval": None,
        "result": "not tested",
    }
    against = {"rows": [tested, untested, "damage"], "note": "the head is new"}
    write_json(run.path / "leaderboard.json", leaderboard({(run.id, 40): 0.8}, against_base=against))
    (table,) = read_leaderboards([run.path])
    shown = {"score": "<b>bleu</b>", "winner": 0.5, "result": "not tested"}
    assert table["final"]["against_base"] == {"rows": [tested, shown], "note": "the head is new"}


def test_the_best_checkpoint_has_a_class_report(tmp_path):
    first, second = (write_run(tmp_path, train={"seed": seed}) for seed in (1, 2))
    for run, accuracy in ((first, 0.8), (second, 0.9)):
        board = leaderboard({(run.id, 40): accuracy})
        add_class_report(board, run, f"a text of {run.id}")
        write_json(run.path / "leaderboard.json", board)
    (table,) = read_leaderboards([first.path, second.path])
    assert table["final"]["errors"]["worst"][0]["text"] == f"a text of {second.id}"
    assert table["final"]["calibration"]["temperature"] == 1.25


@pytest.mark.parametrize("value", [None, True, 3, "x", [1], {"a": 1}, {"accuracy": [1]}])
@pytest.mark.parametrize(
    "path", ["rows/0", "rows/0/step", "rows/0/intervals", "winner/intervals", "labels", "damaged", "directions"]
)
def test_values_of_other_types_are_no_scores(tmp_path, path, value):
    run = write_run(tmp_path)
    board = leaderboard({(run.id, 20): 0.6, (run.id, 40): 0.9})
    *parents, last = (int(key) if key.isdecimal() else key for key in path.split("/"))
    reduce(lambda entry, key: entry[key], parents, board)[last] = value
    write_json(run.path / "leaderboard.json", board)
    for table in read_leaderboards([run.path]):
        assert {row["step"] for row in table["rows"]} <= {3, 20, 40}


def test_a_damaged_leaderboard_is_none(tmp_path):
    run = write_run(tmp_path)
    (run.path / "leaderboard.json").write_text('{"rows": 3}')
    assert read_leaderboards([run.path]) == []


def test_matrices_of_several_labels_are_not_shown(tmp_path):
    run = write_run(tmp_path)
    board = leaderboard({(run.id, 40): 0.9})
    board["winner"]["test"]["confusion_matrix"] = [[[1, 2], [3, 4]], [[1, 2], [3, 4]]]
    write_json(run.path / "leaderboard.json", board)
    (table,) = read_leaderboards([run.path])
    assert list(table["final"]["confusion"]) == ["validation"]
