"""A checkpoint of every kind of tuning as a folder to use: `predict` answers from it as the checkpoint does."""

from __future__ import annotations

import json

import pytest
import torch

from sft_dist import export, predict
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.tunings import KINDS, best_form
from sft_dist.run.folder import RunFolder
from sft_dist.tasks.models import build_model
from sft_dist.tuning import load_weights
from tests.checkpoints import STEP, run_with_checkpoint

TEXTS = ["a great film", "the film was dull and poor and the end was worse"]
CELLS = [
    ("full", "merged"),
    ("freeze", "merged"),
    ("bitfit", "merged"),
    *((name, form) for name in ("lora", "lora, DoRA", "ia3") for form in ("merged", "adapter")),
    ("prefix", "adapter"),
    ("prompt", "adapter"),
]


def with_noise(model: torch.nn.Module, *_: object) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.fixture(scope="module")
def run_of(tiny_model, reviews, tmp_path_factory):
    """Kind of tuning -> a run folder with one checkpoint of weights as training might leave them, and its answers."""

    def make(name: str) -> tuple[RunFolder, torch.Tensor]:
        settings = {
            "task": "text-classification",
            "model": {"path": str(tiny_model)},
            "data": {"source": str(reviews), "max_length": 48},
            "tuning": KINDS[name].model_dump(exclude_none=True),
        }
        path = tmp_path_factory.mktemp("run")
        folder, task, tokenizer = run_with_checkpoint(path, settings, ["neg", "pos"], with_noise)
        twin = build_model(task.recipe, task, tokenizer)
        load_weights(twin, folder.checkpoint(STEP) / "model")
        with torch.no_grad():
            answers = twin.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
        return folder, answers

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), CELLS)
def test_predict_answers_as_the_checkpoint_does(run_of, tmp_path, capsys, name, form):
    folder, expected = run_of(name)
    assert export.main([str(folder.path), "--to", str(tmp_path / "out"), "--form", form]) == 0
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    capsys.readouterr()
    assert predict.main([str(tmp_path / "out"), str(tmp_path / "texts.txt"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = torch.tensor([[row["probabilities"][label] for label in ("neg", "pos")] for row in rows])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (tmp_path / "out" / "adapter_config.json").exists() == (form == "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefix", "lora", "full"])
def test_without_a_form_it_is_the_best_one(run_of, tmp_path, name):
    folder, _ = run_of(name)
    assert export.main([str(folder.path), "--to", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / export.ABOUT).read_text())["form"] == best_form(KINDS[name])


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("prompt", "merged", "cannot be merged: what it trains is put before the text"),
        ("full", "adapter", "no adapter"),
    ],
)
def test_a_form_that_cannot_be_is_refused_with_the_reason(run_of, tmp_path, name, form, said):
    folder, _ = run_of(name)
    with pytest.raises(UserError, match=said):
        export.export(folder, 5, tmp_path / "out", form, {}, {})


def test_a_merged_model_that_is_not_the_trained_one_is_not_published(run_of, tmp_path, monkeypatch, capsys):
    """Here the merge forgets the adapters."""
    folder, _ = run_of("lora")
    monkeypatch.setattr("peft.tuners.lora.LoraModel.merge_and_unload", lambda model: model.unload())
    assert export.main([str(folder.path), "--to", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "evaluate.export: the merged model is not the trained one, and was not published" in said
    assert "layer bert.encoder.layer.0.attention.self.query (Linear)" in said
    assert "--form adapter" in said
    assert list(tmp_path.iterdir()) == []
