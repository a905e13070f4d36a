import json
import shutil

import pytest

from launch.report.collect import collect, read_run
from launch.run_state import states_of
from sft_dist.recipe.files import write_json
from tests.launch.report.run_files import leaderboard, lines_of, loss_at, write_run


def data_of(root):
    return collect([read_run(state) for state in states_of([], str(root))], max_points=1000)


def test_a_single_run(tmp_path):
    run = write_run(tmp_path)
    data = data_of(tmp_path)
    assert data["title"] == "demo"
    assert [entry["id"] for entry in data["runs"]] == [run.id]
    assert data["varying"] == []
    assert data["settings"]["train.lr"] == 1e-3
    loss = next(curve for curve in data["curves"] if (curve["kind"], curve["name"]) == ("train", "loss"))
    assert loss["values"][0] == pytest.approx([loss_at(step) for step in range(1, 41)], rel=1e-4)
    (card,) = data["data"]
    assert card["card"]["splits"]["train"]["rows"] == 640
    assert card["card"]["dropped"] == {"empty": 2}
    assert data["environments"][0]["card"]["torch"] == "2.9"


def test_runs_are_called_by_what_varies(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, train={"seed": seed})
    data = data_of(tmp_path)
    assert sorted(run["name"] for run in data["runs"]) == ["seed=1", "seed=2"]
    assert data["varying"] == ["train.seed"]
    assert "train.seed" not in data["settings"]
    assert [card["runs"] for card in data["data"]] == [[0, 1]]  # the same data


def test_a_run_that_was_never_started_has_a_recipe_and_no_more(tmp_path):
    run = write_run(tmp_path)
    shutil.rmtree(run.attempts)
    run.metrics_file.unlink()
    data = data_of(tmp_path)
    assert (data["runs"][0]["state"], data["runs"][0]["attempts"], data["curves"]) == ("sealed", [], [])
    assert data["cost"]["goodput"] is None


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    write_run(tmp_path)
    broken = write_run(tmp_path, train={"seed": 7})
    broken.recipe_file.write_text("[]")
    broken.plan_file.write_text("3")
    broken.metrics_file.write_text("null\n")
    data = data_of(tmp_path)
    assert sorted(run["state"] for run in data["runs"]) == ["finished", "finished"]
    assert {curve["name"] for curve in data["curves"]} >= {"loss"}
    assert (data["varying"], data["settings"]["train.lr"]) == ([], 1e-3)


@pytest.mark.parametrize("value", [True, 3, "x", [1], {"a": 1}, {"rows": "x", "strategy": 1, "batch": [2]}])
@pytest.mark.parametrize("name", ["plan.json", "splits.json", "plugins.json", "attempts/001/start.json"])
def test_a_file_with_values_of_other_types_does_not_hide_the_other_runs(tmp_path, name, value):
    write_run(tmp_path)
    broken = write_run(tmp_path, train={"seed": 7})
    write_json(broken.path / name, value)
    states = {run["id"]: run["state"] for run in data_of(tmp_path)["runs"]}
    assert states.pop(broken.id) in ("finished", "unreadable")
    assert list(states.values()) == ["finished"]


# ── the summary ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_runs_without_scores_are_to_be_evaluated(tmp_path):
    write_run(tmp_path)
    summary = data_of(tmp_path)["summary"]
    assert (
        summary["trained"]
        == "Full tuning of /models/tiny for text-classification on /data/rows.csv, 640 training rows."
    )
    assert summary["next"] == ["No checkpoint is evaluated yet: `sft-dist eval demo`."]


def test_the_result_names_score_interval_and_size(tmp_path):
    run = write_run(tmp_path)
    board = leaderboard({(run.id, 40): 0.9, (run.id, 20): 0.6})
    board["winner"]["intervals"] = {"test": {"accuracy": [0.78, 0.94]}}
    for row, p in zip(board["rows"], (None, 0.3), strict=True):
        row |= {"p_value": p, "not_distinguishable": p is not None}
    write_json(run.path / "leaderboard.json", board)
    summary = data_of(tmp_path)["summary"]
    text = f"Best by accuracy: {run.id}, step 40: 0.8800 [0.7800, 0.9400] on test (60 examples), 0.9000 on validation (50 examples)."
    assert summary["result"] == [text]
    assert summary["significance"] == [
        "1 of the 1 other checkpoints is not distinguishable from the best at this size."
    ]


def test_the_best_value_at_an_edge_is_named(tmp_path):
    runs = [write_run(tmp_path, train={"lr": lr}) for lr in (1e-4, 1e-3, 1e-2)]
    scores = {(run.id, 40): accuracy for run, accuracy in zip(runs, (0.6, 0.7, 0.8), strict=True)}
    write_json(tmp_path / "demo/leaderboard.json", leaderboard(scores))
    assert (
        "The best train.lr, 0.01, is the largest tried: the optimum may lie beyond."
        in data_of(tmp_path)["summary"]["next"]
    )
    scores[runs[1].id, 40] = 0.99
    write_json(tmp_path / "demo/leaderboard.json", leaderboard(scores))
    assert not any("edge" in line or "tried" in line for line in data_of(tmp_path)["summary"]["next"])


def test_over_fitting_and_too_little_training_are_told_apart(tmp_path):
    run = write_run(tmp_path)
    write_json(run.path / "leaderboard.json", leaderboard({(run.id, 10): 0.6, (run.id, 20): 0.7, (run.id, 40): 0.8}))
    assert data_of(tmp_path)["summary"]["next"] == [
        "The last checkpoint of the best run is its best: longer training may still gain."
    ]
    write_json(run.path / "leaderboard.json", leaderboard({(run.id, 10): 0.8, (run.id, 20): 0.7, (run.id, 40): 0.6}))
    (line,) = data_of(tmp_path)["summary"]["next"]
    assert line.startswith("The validation loss of the best run rises from step 10 on")


def test_a_killed_run_is_to_be_resumed(tmp_path):
    run = write_run(tmp_path, lines_of(range(1, 31)))
    run.all_attempts()[0].outcome_file.unlink()
    line = data_of(tmp_path)["summary"]["next"][0]
    assert "killed" in line
    assert f"`sft-dist resume demo/{run.id}`" in line


def test_what_differs_from_the_parent_recipe(tmp_path):
    for seed in (1, 2):
        run = write_run(tmp_path, train={"seed": seed})
        plan = json.loads(run.plan_file.read_text())
        changes = {"train.lr": [1e-4, 1e-3], "data.labels": [None, ["a"]], "damaged": 3}
        write_json(run.plan_file, {**plan, "base": {"name": "../common.yaml", "changes": changes}})
    (entry,) = data_of(tmp_path)["bases"]
    assert entry["runs"] == [0, 1]
    assert entry["card"]["name"] == "../common.yaml"
    assert entry["card"]["changes"][0] == {"key": "train.lr", "parent": 1e-4, "own": 1e-3}
    assert [row["key"] for row in entry["card"]["changes"]] == ["train.lr", "data.labels"]


def test_the_data_card_says_what_the_check_found(tmp_path, monkeypatch):
    findings = [{"severity": "warning", "kind": kind} for kind in ("long-text", "class-imbalance", "long-text")]
    reports = iter([{"findings": findings}, {"findings": []}, None])
    monkeypatch.setattr("launch.check.cached_report", lambda recipe: next(reports))
    expected = ("warnings: long-text, class-imbalance", "nothing found", "")
    for number, text in enumerate(expected):
        run = write_run(tmp_path / str(number), data={"source": f"/data/{number}.csv"})
        (card,) = data_of(run.path.parents[1])["data"]
        assert card["card"]["check"] == text
