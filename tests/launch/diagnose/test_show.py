import json

import pytest
from click.testing import CliRunner

from launch.cli import cli
from launch.diagnose.diagnosis import diagnose
from launch.diagnose.render import describe, to_sarif
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_json
from sft_dist.recipe.load import load
from tests.launch.diagnose.crafted import evidence
from tests.launch.diagnose.test_diagnosis import FAULTY
from tests.launch.report.run_files import leaderboard, lines_of, write_run


def invoke(*arguments):
    return CliRunner().invoke(cli, ["diagnose", *map(str, arguments)], catch_exceptions=False)


def over_fitted(root):
    lines = lines_of(range(1, 81), total=80, validate_every=10)
    for line in lines:
        if line["kind"] == "validation":
            line["loss"] = 0.5 + abs(line["step"] - 30) / 20
    return write_run(root, lines)


def test_a_healthy_run_is_silent_and_says_what_could_not_run(tmp_path):
    run = write_run(tmp_path, lines_of(range(1, 81), total=80, validate_every=10))
    result = invoke(run.path)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"demo/{run.id}: nothing conspicuous\n")
    assert "no evaluation with a confusion matrix: sft-dist eval" in result.stdout


def test_a_finding_has_numbers_diff_and_command(tmp_path):
    run = over_fitted(tmp_path)
    result = invoke(run.path)
    assert result.exit_code == 1
    assert "the validation loss is lowest at step 30 (0.5)" in result.stdout
    assert "+ train.epochs: 1.5" in result.stdout
    assert f"sft-dist diagnose {run.path} --write next.yaml; sft-dist run next.yaml" in result.stdout


def test_the_next_recipe_is_written_and_valid(tmp_path):
    run = over_fitted(tmp_path)
    invoke(run.path, "--write", tmp_path / "next.yaml")
    recipe = load(tmp_path / "next.yaml")
    assert recipe == run.recipe().model_copy(update={"train": recipe.train})
    assert recipe.train == run.recipe().train.model_copy(update={"epochs": 1.5})


def test_no_next_recipe_is_written_for_a_healthy_run(tmp_path):
    run = write_run(tmp_path)
    with pytest.raises(UserError, match="no setting would help"):
        invoke(run.path, "--write", tmp_path / "next.yaml")


def test_json_and_sarif_hold_the_same_finding(tmp_path):
    run = over_fitted(tmp_path)
    report = json.loads(invoke(run.path, "--json").stdout)
    (finding,) = report["runs"][0]["findings"]
    assert (finding["cause"], finding["numbers"]["step"], finding["changes"]) == (
        "over-fit",
        30.0,
        {"train.epochs": 1.5},
    )
    sarif = json.loads(invoke(run.path, "--sarif").stdout)
    (result,) = sarif["runs"][0]["results"]
    assert (sarif["version"], result["ruleId"], result["level"]) == ("2.1.0", "over-fit", "error")


def test_scores_of_the_leaderboard_are_read(tmp_path):
    run = over_fitted(tmp_path)
    board = leaderboard({(run.id, 30): 0.9})
    board["winner"]["test"]["accuracy"] = 0.3
    write_json(run.path / "leaderboard.json", board)
    causes = [finding["cause"] for finding in json.loads(invoke(run.path, "--json").stdout)["runs"][0]["findings"]]
    assert causes == ["over-fit", "leak"]


def test_runs_that_were_never_trained_are_an_error(tmp_path):
    result = CliRunner().invoke(cli, ["diagnose", "--runs", str(tmp_path), "0a1b"])
    assert result.exit_code != 0


def test_text_of_a_file_cannot_control_the_terminal():
    text = describe(diagnose(evidence(run="demo/\x1b[2J", state="stopped")))
    assert "\x1b" not in text


def test_sarif_names_every_rule():
    rules = to_sarif([diagnose(FAULTY["plateau"])])["runs"][0]["tool"]["driver"]["rules"]
    assert {"over-fit", "plateau", "seed-noise"} <= {rule["id"] for rule in rules}
