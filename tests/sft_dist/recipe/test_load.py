"""Base files, overrides, local paths and shipped recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import shipped
from sft_dist.recipe.load import changes_of_base, load, read, validate
from tests.sft_dist.recipe.recipe_texts import GOOD, write


def said(path: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    return caught.value.render()


def test_a_recipe_is_read_and_validated(tmp_path: Path) -> None:
    recipe = load(write(tmp_path))
    assert recipe.name == "my"
    assert recipe.train.lr == 1e-4
    assert recipe.tuning.method == "lora"


def test_a_name_in_the_file_wins_over_the_files_name(tmp_path: Path) -> None:
    assert load(write(tmp_path, "name: other\n" + GOOD)).name == "other"


def test_a_file_name_that_is_no_run_name_is_explained(tmp_path: Path) -> None:
    text = said(write(tmp_path, GOOD, "my recipe.yaml"))
    assert "found: 'my recipe'" in text or "found: my recipe" in text
    assert "without `name:` it is the file's name" in text


def test_reading_the_recipe_imports_nothing_heavy() -> None:
    code = "import sys, sft_dist.recipe.load, launch.starters; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "transformers", "datasets", "accelerate", "click"} & set(out)


@pytest.mark.parametrize("path", sorted(shipped("recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_reads(path: Path) -> None:
    assert read(path).data["name"] == path.stem


# ── base ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_child_replaces_single_settings_of_its_base(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    recipe = load(write(tmp_path, "base: base.yaml\ntrain: {lr: 3}\ndata: {labels: [a, b]}\n"))
    assert (recipe.name, recipe.train.lr, recipe.train.epochs, recipe.data.labels) == ("my", 3, 2, ["a", "b"])


def test_what_differs_from_the_base_is_known_as_it_is_written(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    child = write(tmp_path, "base: base.yaml\ntuning: {alpha: 8}\ntrain: {steps: 5}\ndata: {labels: [a, b]}\n")
    changes = changes_of_base(read(child, ["train.lr=1"]))
    assert changes == {
        "data.labels": [None, ["a", "b"]], "tuning.alpha": [None, 8], "train.lr": [1e-4, 1], "train.epochs": [2, None],
        "train.steps": [None, 5],
    }  # fmt: skip
    assert changes_of_base(read(write(tmp_path, GOOD))) == {}


def test_bases_form_a_chain(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "a/one.yaml")
    write(tmp_path, "base: ../a/one.yaml\ntrain: {seed: 7}\n", "b/two.yaml")
    assert load(write(tmp_path, "base: b/two.yaml\n")).train.seed == 7


def test_lists_are_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("data:", "data:\n  labels: [a, b, c]"), "base.yaml")
    assert load(write(tmp_path, "base: base.yaml\ndata: {labels: [x, y]}\n")).data.labels == ["x", "y"]


@pytest.mark.parametrize("tuning", ["full", "{method: full}"])
def test_a_changed_choice_leaves_the_old_choices_settings_behind(tuning: str, tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    assert load(write(tmp_path, f"base: base.yaml\ntuning: {tuning}\n")).tuning.method == "full"


def test_the_same_choice_keeps_its_settings(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    tuning = load(write(tmp_path, "base: base.yaml\ntuning: {method: lora, alpha: 5}\n")).tuning
    assert tuning.model_dump(include={"r", "alpha"}) == {"r": 8, "alpha": 5}


def test_a_bare_name_in_the_base_takes_options_from_the_child(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("lr: 1e-4", "lr: 1e-4\n  optimizer: sgd"), "base.yaml")
    optimizer = load(write(tmp_path, "base: base.yaml\ntrain: {optimizer: {momentum: 0.5}}\n")).train.optimizer
    assert optimizer.model_dump(include={"name", "momentum"}) == {"name": "sgd", "momentum": 0.5}


def test_steps_replace_the_epochs_of_the_base(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    train = load(write(tmp_path, "base: base.yaml\ntrain: {steps: 5}\n")).train
    assert (train.steps, train.epochs) == (5, None)


def test_steps_and_epochs_in_one_file_are_refused(tmp_path: Path) -> None:
    assert "give `epochs` or `steps`, not both" in said(
        write(tmp_path, GOOD.replace("epochs: 2", "epochs: 2\n  steps: 3"))
    )


def test_a_mistake_is_shown_in_the_file_it_was_made_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD.replace("epochs: 2", "epoch: 2"), "base.yaml")
    text = said(write(tmp_path, "base: base.yaml\ntrain:\n  seed: x\n"))
    assert "base.yaml:10:3: train.epoch: unknown key" in text
    assert "my.yaml:3:9: train.seed: expected a whole number" in text


def test_name_and_description_are_not_inherited(tmp_path: Path) -> None:
    write(tmp_path, "name: parent\ndescription: parent's\n" + GOOD, "base.yaml")
    recipe = load(write(tmp_path, "base: base.yaml\n"))
    assert (recipe.name, recipe.description) == ("my", "")


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "base: my.yaml\n", "other.yaml")
    assert "circular base: my.yaml -> other.yaml -> my.yaml" in said(write(tmp_path, "base: other.yaml\n"))


def test_a_missing_base_is_shown_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD, "common.yaml")
    text = said(write(tmp_path, GOOD + "base: commonn.yaml\n"))
    assert text == "my.yaml:12:7: base: no such file\n    found: commonn.yaml\n    did you mean `common.yaml`?"


@pytest.mark.parametrize("base", ["5", "[a.yaml, b.yaml]", "''", ""])
def test_base_is_one_file(base: str, tmp_path: Path) -> None:
    assert "base: expected one file" in said(write(tmp_path, f"base: {base}\n" + GOOD))


def test_a_shipped_recipe_can_be_the_base(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, "base: recipes/text-classification/quickstart.yaml\ntuning: full\n"))
    assert recipe.tuning.method == "full"


@pytest.mark.parametrize("name", ["recipes/text-classification/quickstart.yaml", "text-classification/quickstart"])
def test_shipped_recipes_are_found_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(name).name == "quickstart"


def test_a_misspelt_shipped_recipe_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = said("recipes/text-classification/quikstart.yaml")
    assert "did you mean `recipes/text-classification/quickstart.yaml`?" in text


@pytest.mark.parametrize("name", ["a\0b", "\udcff", "x" * 5000, "../../../../etc/nothing", "/dev/null", ""])
def test_odd_file_names_are_user_errors(name: str) -> None:
    assert said(name)


# ── overrides ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_overrides_take_yaml_values(tmp_path: Path) -> None:
    recipe = load(
        write(tmp_path),
        [
            "train.lr=3e-5",
            "data.labels=[a, 'b c']",
            "train.warmup=10 steps",
            'description="hello"',
            "evaluate={metric: loss}",
            "data.split.stratify=false",
            "train.clip_norm=null",
        ],
    )
    assert recipe.train.lr == 3e-5
    assert recipe.data.labels == ["a", "b c"]
    assert recipe.train.warmup == "10 steps"
    assert recipe.description == "hello"
    assert recipe.evaluate.metric == "loss"
    assert recipe.data.split.stratify is False
    assert recipe.train.clip_norm is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.lr"], "command line: train.lr: expected KEY=VALUE"),
        (["=3"], "expected KEY=VALUE"),
        (["train..lr=3"], "expected a key path such as train.lr"),
        (["tuning=[1"], "a list that began with `[` is not closed"),
        (["train.lr=fast"], "command line: train.lr=fast: train.lr: expected a number, found text"),
        (["trainn.lr=3"], "command line: trainn.lr=3: trainn: unknown key `trainn`"),
        (["train.lr=1", "train.lr=2"], "given twice"),
        (["train.lr=1", "train.lr.x=2"], "is not a mapping"),
        (["base=x.yaml"], "`base` can only be written in a file"),
        (["train.lr=\x1b[0m"], "control character"),
        (["train.lr=\udcff"], "control character"),
        (["train.lr=[\udcff"], "control character"),
        (["tuning.r=4", "tuning=full"], "`r` belongs to tuning method `lora` or `qlora`; this recipe says `full`"),
    ],
)
def test_bad_overrides_are_shown_as_the_command_line(overrides: list[str], words: str, tmp_path: Path) -> None:
    assert words in said(write(tmp_path), *overrides)


def test_all_bad_overrides_are_reported_at_once(tmp_path: Path) -> None:
    assert said(write(tmp_path), "train.lr", "=", "a..b=1").endswith("3 problems.")


def test_the_order_of_overrides_does_not_matter(tmp_path: Path) -> None:
    file = write(tmp_path)
    one = load(file, ["tuning=freeze", "tuning.train_last_layers=2"])
    assert one == load(file, ["tuning.train_last_layers=2", "tuning=freeze"])
    assert one.tuning.method == "freeze"


def test_an_override_of_what_the_matrix_sets_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD + "matrix: {train.lr: [1, 2], zip: [{train.seed: [1, 2], tuning.r: [1, 2]}]}\n")
    assert "has no effect: the matrix sets it" in said(file, "train.lr=3")
    assert "has no effect: the matrix sets it" in said(file, "tuning.r=3")
    assert read(file, ["matrix.train.lr=[5]"]).data["matrix"]["train.lr"] == [5]
    assert load(file, ["matrix=null"]).matrix is None


# ── local paths ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_local_paths_are_relative_to_the_file_they_are_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, GOOD, "a/base.yaml")
    file = write(
        tmp_path, "base: ../a/base.yaml\ndata: {source: {train: x.csv, test: [../y/*.csv, org/name]}}\n", "b/c.yaml"
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = load(file, ["model.tokenizer=./tok"])
    assert recipe.model.path == str(tmp_path / "a/model")
    assert recipe.model.tokenizer == str(tmp_path / "here/tok")
    source = recipe.data.source
    assert source.model_dump(exclude_none=True) == {  # type: ignore[union-attr]
        "train": str(tmp_path / "b/x.csv"),
        "test": [str(tmp_path / "y/*.csv"), "org/name"],
    }


def test_local_paths_in_the_matrix_are_absolute_too(tmp_path: Path) -> None:
    matrix = (
        "matrix: {model.path: [./m1, org/m2], zip: [{data.source: [[a.csv], b.csv], model: [{path: ./m3}, {path: x}]}]}"
    )
    found = read(write(tmp_path, GOOD + matrix)).data["matrix"]
    assert found["model.path"] == [str(tmp_path / "m1"), "org/m2"]
    assert found["zip"][0]["data.source"] == [[str(tmp_path / "a.csv")], str(tmp_path / "b.csv")]
    assert found["zip"][0]["model"] == [{"path": str(tmp_path / "m3")}, {"path": "x"}]


def test_a_folder_beside_the_recipe_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "models/mini").mkdir(parents=True)
    file = write(tmp_path, GOOD.replace("./model", "models/mini"))
    assert load(file).model.path == str(tmp_path / "models/mini")


# ── places ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_key_path_that_is_not_there_has_the_nearest_place(tmp_path: Path) -> None:
    source = read(write(tmp_path))
    mark = source.mark(("train", "early_stopping", "patience"))
    assert mark is not None
    assert (mark.line, mark.column) == (9, 1)


def test_list_positions_may_be_text(tmp_path: Path) -> None:
    source = read(write(tmp_path, GOOD.replace("data:", "data:\n  labels: [a, b]")))
    assert source.mark(("data", "labels", "1")) == source.mark(("data", "labels", 1))


def test_validating_leaves_the_source_as_it_was(tmp_path: Path) -> None:
    source = read(write(tmp_path))
    assert validate(source) == validate(source)


def test_no_shipped_recipe_is_overlooked():
    """The count is stated, so that a recipe in a folder nobody lists cannot go unchecked."""
    assert len(list(shipped("recipes").rglob("*.yaml"))) == 22
    assert [path for path in shipped("recipes").rglob("*") if path.is_file() and path.suffix != ".yaml"] == []


def test_problems_between_settings_are_reported_beside_wrong_settings(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(
        "task: text-classification\nmodel: {path: a/b}\ndata: {source: c/d}\ntuning: {method: lora, r: many}\n"
        "train: {lr: fast, loss: mse}\nevaluate: {metric: acuracy}\n"
    )
    with pytest.raises(UserError) as caught:
        load(path)
    assert {one.path for one in caught.value.problems} == {"tuning.r", "train.lr", "train.loss", "evaluate.metric"}


def test_a_wrong_kind_of_problem_raises_no_false_alarm_about_what_hangs_on_it(tmp_path):
    path = tmp_path / "kind.yaml"
    path.write_text(
        "task: {type: text-classification, problem: regresion}\nmodel: {path: a/b}\ndata: {source: c/d}\n"
        "tuning: full\ntrain: {lr: 1e-4}\nevaluate: {metric: spearman}\n"
    )
    with pytest.raises(UserError) as caught:
        load(path)
    assert [one.path for one in caught.value.problems] == ["task.problem"]
