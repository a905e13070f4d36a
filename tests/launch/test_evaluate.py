"""The runs that `eval` hands to the sweep, and the requirements that it compares the winner with."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import evaluate
from launch.expand import expand
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_json
from sft_dist.recipe.load import read
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import Workplace, make_recipe
from tests.sft_dist.recipe.recipe_texts import write

BOARD = {"winner": {"test": {"accuracy": 0.8, "loss": 0.5, "confusion_matrix": [[1]]}}}


@pytest.mark.parametrize(
    ("required", "missed"),
    [
        (("accuracy", 0.75), 0),
        (("accuracy", 0.8), 0),
        (("accuracy", 0.81), 1),
        (("accuracy", float("nan")), 1),
        (("loss", 0.6), 0),
        (("loss", 0.4), 1),
        (("f1_macro", 0.1), 1),
    ],
)
def test_a_requirement_is_met_or_missed(required: tuple[str, float], missed: int) -> None:
    assert len(evaluate.missed_requirements(BOARD, [required])) == missed


def test_a_leaderboard_without_test_scores_meets_nothing() -> None:
    assert evaluate.missed_requirements({}, [("accuracy", 0.0)])
    assert evaluate.missed_requirements({"winner": {"test": {"accuracy": None}}}, [("accuracy", 0.0)])


def test_general_scores_can_be_required_by_their_own_direction() -> None:
    name = "lm_eval/capitals/ppl"
    against_base = {"rows": [{"score": name, "direction": "min"}], "scores": {"winner": {name: 3.5}}}
    board = {**BOARD, "against_base": against_base}
    assert evaluate.missed_requirements(board, [(name, 4.0), ("accuracy", 0.75)]) == []
    assert evaluate.missed_requirements(board, [(name, 3.0)]) == [f"required {name} <= 3, the winner has 3.5000"]


def test_the_base_stands_for_a_run_to_compare_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = RunFolder(tmp_path / "demo" / "0123456789")
    folder.create(make_recipe(model={"path": "./model"}))
    folder.checkpoint(5).mkdir(parents=True)
    started: list[list[str]] = []

    def run_module(module: str, arguments: list[object], env: object) -> int:
        started.append(list(map(str, arguments)))
        write_json(folder.path / "leaderboard.json", {"worse_than_reference": ["accuracy is worse"]})
        return 0

    monkeypatch.setattr(evaluate, "run_module", run_module)
    assert evaluate.evaluate_runs([str(folder.path)], tmp_path, [], False, True, reference="base") == 1
    assert started[0][-2:] == ["--no-worse-than", "base"]
    assert "accuracy is worse" in capsys.readouterr().err


def test_a_malformed_requirement_is_explained() -> None:
    assert evaluate.parse_requirement("accuracy=0.75") == ("accuracy", 0.75)
    with pytest.raises(UserError, match=r"such as accuracy=0\.75"):
        evaluate.parse_requirement("accuracy")


def test_scores_are_removed_only_with_consent_to_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "demo" / "0123456789")
    folder.create(make_recipe(model={"path": "./model", "allow_pickle": True}))
    folder.evaluation.mkdir()
    write_json(folder.evaluation / "step-00000001.validation.json", {})
    with pytest.raises(UserError, match="allow-pickle"):
        evaluate.run_sweep([folder.path], folder.path, force=True, processes=2)
    assert [file.name for file in folder.evaluation.iterdir()] == ["step-00000001.validation.json"]


def test_a_forced_sweep_forgets_scores_of_means_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.evaluation.mkdir()
    for name in ("step-00000001.test", "mean-0123456789.validation", "untrained.validation"):
        write_json(folder.evaluation / f"{name}.json", {})
    evaluate.forget_scores([tmp_path])
    assert not any(folder.evaluation.iterdir())


def test_a_damaged_mean_says_nothing_about_the_newest_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "0123456789")
    folder.checkpoint(8).mkdir(parents=True)
    damaged = ["0123456789 mean-0123456789 is damaged and excluded: ..."]
    write_json(tmp_path / "leaderboard.json", {"rows": [], "damaged": damaged})
    assert not evaluate.all_evaluated([folder.path], tmp_path)
    damaged.append("0123456789 step-00000008 is damaged and excluded: ...")
    write_json(tmp_path / "leaderboard.json", {"rows": [], "damaged": damaged})
    assert evaluate.all_evaluated([folder.path], tmp_path)


@pytest.mark.slow
def test_a_recipe_stands_for_its_trained_runs_with_the_leaderboard_above_them(workplace: Workplace) -> None:
    root = workplace.path / "runs"
    with workplace.recipe.open("a") as file:
        file.write("matrix: {train.seed: [1, 2, 3]}\n")
    first, second, _ = workplace.run_folders()
    with pytest.raises(UserError, match="no run with a checkpoint"):
        evaluate.find_folders([str(workplace.recipe)], root)
    for folder in (first, second):
        folder.checkpoint(5).mkdir(parents=True)
        folder.recipe_file.touch()
    folders, board = evaluate.find_folders([str(workplace.recipe)], root)
    assert folders == [first.path, second.path]
    assert board == first.path.parent
    folders, board = evaluate.find_folders([str(first.path)], root)
    assert (folders, board) == ([first.path], first.path)


def test_slices_and_temperature_are_those_of_the_recipe_as_it_is_now(tmp_path: Path) -> None:
    """They make no other run, of a single recipe and of a matrix."""
    file = write(tmp_path)
    changes = ["evaluate.slices=[lang, source]", "evaluate.temperature=true"]
    for varied in ([], ["matrix={train.seed: [1, 2]}"]):
        ids = [[run.id for run in expand(read(file, [*varied, *chosen]))] for chosen in ([], changes)]
        assert ids[0] == ids[1]
    expected = ["--slice", "lang", "--slice", "source", "--temperature"]
    assert evaluate.changes_in(evaluate.recipes_in([str(file), *changes])) == expected
    assert evaluate.changes_in(evaluate.recipes_in([str(file)])) == []
    assert evaluate.changes_in(evaluate.recipes_in(["0a1b2c3d4e", *changes])) == []


@pytest.mark.slow
def test_overrides_choose_other_runs(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders("train.seed=9")
    folder.checkpoint(5).mkdir(parents=True)
    folders, _ = evaluate.find_folders([str(workplace.recipe), "train.seed=9"], Path(folder.path.parent.parent))
    assert folders == [folder.path]
