"""One prediction for each row, and which pictures and recordings are opened: those that the user names, and those that lie
beside a table."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sft_dist.export import export
from sft_dist.predict import _media, main
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from tests.checkpoints import STEP, run_with_checkpoint


def recipe(**data: bool) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "rows",
            "task": "image-classification",
            "model": {"path": "/nowhere"},
            "data": {"source": "./a.csv", **data},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
    )


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("data", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.png").touch()
    (tmp_path / "secret.png").touch()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data" / "rows.csv"


def test_files_that_the_user_names_are_opened_wherever_they_are(table, tmp_path):
    there = tmp_path / "data" / "data.png"
    for name, path in (("here.png", "here/here.png"), ("../secret.png", "secret.png"), (str(there), "data/data.png")):
        for file in (name, "-"):
            assert _media(name, file, recipe()) == {"path": str(tmp_path / path), "bytes": None}


def test_a_table_names_files_beside_it_or_in_the_working_directory(table, tmp_path):
    for name, path in (("data.png", "data/data.png"), ("here.png", "here/here.png"), ("gone.png", "")):
        assert _media(name, str(table), recipe())["path"] == (str(tmp_path / path) if path else name)
    for name in ("../secret.png", str(tmp_path / "secret.png"), "file:///etc/passwd", "http://127.0.0.1:1/a.png"):
        with pytest.raises(UserError, match=r"rows\.csv: .*cannot be read \("):
            _media(name, str(table), recipe())


def test_urls_are_opened_where_the_recipe_allows_them(table):
    for file in (str(table), "-"):
        assert _media("https://x.org/a.png", file, recipe(allow_urls=True))["path"] == "https://x.org/a.png"
        for name in ("https://x.org/a.png", "reference://x.org/a.json"):
            with pytest.raises(UserError, match="cannot be read"):
                _media(name, file, recipe())


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {
        "task": "text-classification", "model": {"path": str(tiny_model)}, "data": {"source": "none.jsonl"}, "tuning": "full",
        "evaluate": {"micro_batch": 1},
    }  # fmt: skip
    run, _, _ = run_with_checkpoint(tmp_path_factory.mktemp("run"), settings, ["neg", "pos"], lambda *_: None)
    return export(run, STEP, run.export, "merged", {}, {})


def test_each_row_has_one_prediction_and_keeps_its_id(model, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"id": 7, "text": "a"}\n{"id": 8}\n{"id": 9, "text": "b"}\n')
    given = [str(model), str(tmp_path / "a.jsonl"), "--id", "id"]
    assert main([*given, "-o", str(tmp_path / "out.csv")]) == 2
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["text"], row["label"] != "") for row in rows] == [
        ("7", "a", True),
        ("8", "", False),
        ("9", "b", True),
    ]
    assert "error: " in (message := capsys.readouterr().err)
    assert "a.jsonl:2: no column 'text'" in message
    assert main([*given, "--json", "--skip-bad"]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [7, 9]


def test_an_export_carries_the_temperature_and_says_so(model, tmp_path):
    run = RunFolder(model.parent)
    folder = export(run, STEP, tmp_path / "scaled", "merged", {}, {}, 1.5)
    assert json.loads((folder / "sft_dist.json").read_text())["temperature"] == 1.5
    assert "compute `softmax(logits / 1.5)`" in (folder / "README.md").read_text()
    assert "temperature" not in json.loads((model / "sft_dist.json").read_text())
    assert "softmax" not in (model / "README.md").read_text()


def test_an_output_that_is_an_input_is_refused(model, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text\na\n")
    assert main([str(model), str(tmp_path / "a.csv"), "-o", str(tmp_path / "a.csv")]) == 2
    assert "is one of the inputs" in capsys.readouterr().err
    assert (tmp_path / "a.csv").read_text() == "text\na\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"model_type": "bert", "hidden_size": "many"}'),
        ("config.json", '{"model_type": "bert", "num_hidden_layers": null}'),
        ("config.json", '{"model_type": "unheard-of"}'),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}'),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
        ("model.safetensors", "no weights"),
    ],
)
def test_a_broken_model_folder_is_the_user_s_error(model, tmp_path, capsys, file, content):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / file).write_text(content)
    (tmp_path / "a.txt").write_text("a\n")
    assert main([str(folder), str(tmp_path / "a.txt")]) == 2
    assert str(folder) in capsys.readouterr().err


def probabilities_of(folder, capsys):
    (folder.parent / "texts.txt").write_text("a\nb and c\n")
    assert main([str(folder), str(folder.parent / "texts.txt"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return torch.tensor([[row["probabilities"][label] for label in ("neg", "pos")] for row in rows])


def test_probabilities_are_those_of_logits_divided_by_the_temperature(model, tmp_path, capsys):
    """The model's own logits stay as they are."""
    about = json.loads((model / "sft_dist.json").read_text())
    folder = shutil.copytree(model, tmp_path / "scaled")
    (folder / "sft_dist.json").write_text(json.dumps({**about, "temperature": 0.25}))
    network, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        logits = network.eval()(**tokenizer(["a", "b and c"], padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(probabilities_of(folder, capsys), (logits / 0.25).softmax(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(probabilities_of(model, capsys), logits.softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0, -1, "2", None, True])
def test_a_temperature_that_is_none_is_refused(model, tmp_path, capsys, temperature):
    about = json.loads((model / "sft_dist.json").read_text())
    folder = shutil.copytree(model, tmp_path / "scaled")
    (folder / "sft_dist.json").write_text(json.dumps({**about, "temperature": temperature}))
    (tmp_path / "a.txt").write_text("a\n")
    assert main([str(folder), str(tmp_path / "a.txt")]) == 2
    assert "a number above 0 is needed: export the model again" in capsys.readouterr().err
